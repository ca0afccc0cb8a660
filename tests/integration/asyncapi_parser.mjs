// Reads {name: document} from standard input, writes {name: [error, ...]} of @asyncapi/parser.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

const { Parser } = createRequire(process.argv[2] + '/')('@asyncapi/parser');
const parser = new Parser();
const said = {};
for (const [name, document] of Object.entries(JSON.parse(readFileSync(0, 'utf8')))) {
  const { document: parsed, diagnostics } = await parser.parse(JSON.stringify(document));
  said[name] = diagnostics.map((each) => `${each.path.join('/')}: ${each.message}`);
  if (!parsed && said[name].length === 0) said[name] = ['not parsed'];
}
process.stdout.write(JSON.stringify(said));
