BEGIN TRANSACTION;
CREATE TABLE "choreo_outbox" (position INTEGER NOT NULL PRIMARY KEY, topic TEXT NOT NULL, key BLOB, value BLOB NOT NULL, headers TEXT NOT NULL, created_ms INTEGER NOT NULL);
INSERT INTO "choreo_outbox" VALUES(1,'asked',X'6F2D31',X'7B226964223A226F2D31222C226B696E64223A22706C61696E222C226E6F7465223A22C3A4227D','[["ce_specversion","1.0"],["ce_id","id of o-1"],["ce_source","/shop"],["ce_type","stored.asked"],["content-type","application/json"],["ce_correlationid","id of o-1"],["ce_time","2026-11-29T21:41:30.457Z"],["ce_dataschema","urn:choreo:stored.asked:1"]]',1795988490457);
COMMIT;
