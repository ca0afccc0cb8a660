BEGIN TRANSACTION;
CREATE TABLE choreo_digest (prefix BLOB, id INTEGER, PRIMARY KEY (prefix, id)) WITHOUT ROWID;
CREATE TABLE choreo_instance (
    process TEXT, key TEXT, version INTEGER NOT NULL, state TEXT NOT NULL, data BLOB NOT NULL, ended INTEGER NOT NULL,
    deferred BLOB NOT NULL, correlation_id TEXT NOT NULL, revision INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
    PRIMARY KEY (process, key)
);
INSERT INTO "choreo_instance" VALUES('story','ö-1',2,'waiting',X'7B226E6F7465223A202278227D',0,X'5B5B22612E62222C20227B7D225D5D','flow-1',1,1795988481563);
CREATE TABLE choreo_intervention (
    id INTEGER PRIMARY KEY, process TEXT NOT NULL, key TEXT NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL,
    why TEXT NOT NULL, correlation_id TEXT NOT NULL, at_ms INTEGER NOT NULL
);
INSERT INTO "choreo_intervention" VALUES(1,'story','ö-1','set_state','Ada','it was stuck','flow-1',1795988481567);
CREATE TABLE choreo_key (
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL, done INTEGER NOT NULL, fingerprint BLOB NOT NULL,
    "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL, epoch INTEGER NOT NULL,
    deliveries INTEGER NOT NULL, handler TEXT NOT NULL, offset INTEGER NOT NULL, correlation_id TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL, outcome TEXT NOT NULL, attempts INTEGER NOT NULL, duration_s REAL NOT NULL,
    done_ms INTEGER NOT NULL
);
INSERT INTO "choreo_key" VALUES(1,X'01010101010101010101010101010101',1,X'3132333435363738','kitchen','orders',0,1,1,'kitchen.cook',7,'flow-1',1767225600007,'handled',2,0.25,1795988481563);
INSERT INTO "choreo_key" VALUES(2,X'02020202020202020202020202020202',1,X'3132333435363738','kitchen','orders',0,1,1,'kitchen.cook',8,'flow-1',1767225600008,'dead_letter:rejected',1,0.0,1795988481563);
INSERT INTO "choreo_key" VALUES(3,X'03030303030303030303030303030303',0,X'3132333435363738','kitchen','orders',0,1,1,'kitchen.cook',9,'flow-1',1767225600009,'',0,0.0,0);
INSERT INTO "choreo_key" VALUES(4,X'04040404040404040404040404040404',1,X'3132333435363738','kitchen','orders',0,1,1,'kitchen.cook',10,'flow-1',1767225600010,'parked:',1,0.0,1795988481563);
INSERT INTO "choreo_key" VALUES(5,X'05050505050505050505050505050505',1,X'3132333435363738','kitchen','orders',0,1,1,'kitchen.cook',11,'flow-1',1767225600011,'handled',1,0.0,1795988481563);
CREATE TABLE choreo_lease (
    "group" TEXT, topic TEXT, "partition" INTEGER, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
    expires_ms INTEGER NOT NULL, progress_ms INTEGER, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID;
INSERT INTO "choreo_lease" VALUES('kitchen','orders',0,1,'old',1795988511569,1767225600009);
CREATE TABLE choreo_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL,
    to_topic TEXT NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL
);
INSERT INTO "choreo_outbox" VALUES(1,'kitchen','orders',0,'out',X'6B00',X'7B226964223A20317D',X'0E0000000300000063655F7370656376657273696F6E312E30050000000400000063655F6964C3BC2D310B000000FFFFFFFF7472616365706172656E740100000001000000FFFF');
CREATE TABLE choreo_parked (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, queue BLOB NOT NULL, "group" TEXT NOT NULL, row BLOB NOT NULL UNIQUE,
    handler TEXT NOT NULL, to_topic TEXT NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, attempts INTEGER NOT NULL, correlation_id TEXT NOT NULL, parked_ms INTEGER NOT NULL,
    wake_ms INTEGER
);
INSERT INTO "choreo_parked" VALUES(1,X'71717171717171717171717171717171','kitchen',X'72727272727272727272727272727272','cook','out',X'6B00',X'7B226964223A20317D',X'0E0000000300000063655F7370656376657273696F6E312E30050000000400000063655F6964C3BC2D310B000000FFFFFFFF7472616365706172656E740100000001000000FFFF','handler_failed','détail',3,'flow-1',1795988481563,NULL);
CREATE TABLE choreo_run (end INTEGER NOT NULL);
INSERT INTO "choreo_run" VALUES(0);
CREATE TABLE choreo_schema (version INTEGER NOT NULL);
INSERT INTO "choreo_schema" VALUES(5);
CREATE TABLE choreo_timer (
    process TEXT, key TEXT, name TEXT, token TEXT NOT NULL, due_ms INTEGER NOT NULL, number INTEGER NOT NULL,
    correlation_id TEXT NOT NULL, traceparent TEXT NOT NULL, wake_ms INTEGER NOT NULL,
    PRIMARY KEY (process, key, name)
) WITHOUT ROWID;
INSERT INTO "choreo_timer" VALUES('story','ö-1','reminder','token-1',4000000000000,3,'flow-1','00-11111111111111111111111111111111',4000000000000);
CREATE INDEX choreo_key_claimed ON choreo_key ("group", topic, "partition") WHERE done = 0;
CREATE INDEX choreo_key_flow ON choreo_key (id / 2048, correlation_id);
CREATE INDEX choreo_key_time ON choreo_key ("group", timestamp_ms);
CREATE INDEX choreo_instance_state ON choreo_instance (process, state, key);
CREATE INDEX choreo_timer_wake ON choreo_timer (process, wake_ms);
CREATE INDEX choreo_intervention_instance ON choreo_intervention (process, key);
CREATE INDEX choreo_intervention_flow ON choreo_intervention (correlation_id);
CREATE INDEX choreo_instance_ended ON choreo_instance (process, updated_ms) WHERE ended = 1;
CREATE INDEX choreo_parked_queue ON choreo_parked (queue, seq);
CREATE INDEX choreo_parked_wake ON choreo_parked ("group", wake_ms);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('choreo_key',5);
INSERT INTO "sqlite_sequence" VALUES('choreo_parked',1);
INSERT INTO "sqlite_sequence" VALUES('choreo_outbox',1);
COMMIT;
