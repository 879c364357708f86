-- A vault's database of schema version 4 with a row of each table: input of test_vault_migrations.py, never changed.
CREATE TABLE format (
	version INTEGER NOT NULL,
	PRIMARY KEY (version)
);
CREATE TABLE item (
	vm VARCHAR NOT NULL,
	interval_s FLOAT NOT NULL,
	app_consistent_every_s FLOAT,
	history_hours INTEGER NOT NULL,
	protection_state VARCHAR NOT NULL,
	test_failover_state VARCHAR NOT NULL,
	active_location VARCHAR NOT NULL,
	suspended BOOLEAN NOT NULL,
	resync_reason VARCHAR,
	resync_marks INTEGER NOT NULL,
	sent_position BIGINT NOT NULL,
	sent_time_ns BIGINT,
	points_after_position BIGINT NOT NULL,
	protected_since_ns BIGINT,
	PRIMARY KEY (vm)
);
CREATE TABLE job (
	id INTEGER NOT NULL,
	name VARCHAR NOT NULL,
	vm VARCHAR NOT NULL,
	"key" VARCHAR NOT NULL,
	scenario VARCHAR NOT NULL,
	friendly_name VARCHAR NOT NULL,
	state VARCHAR NOT NULL,
	state_description VARCHAR,
	start_ns BIGINT NOT NULL,
	end_ns BIGINT,
	memory JSON NOT NULL,
	result_vm JSON,
	result_point JSON,
	PRIMARY KEY (id),
	UNIQUE (name)
);
CREATE INDEX ix_job_vm ON job (vm);
CREATE TABLE event (
	id INTEGER NOT NULL,
	code VARCHAR NOT NULL,
	type VARCHAR NOT NULL,
	severity VARCHAR NOT NULL,
	at_ns BIGINT NOT NULL,
	affected_object VARCHAR NOT NULL,
	description TEXT NOT NULL,
	PRIMARY KEY (id)
);
CREATE TABLE known_disk (
	fabric VARCHAR NOT NULL,
	vm VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	size_bytes BIGINT NOT NULL,
	path VARCHAR NOT NULL,
	PRIMARY KEY (fabric, vm, name)
);
CREATE TABLE azure_vm (
	name VARCHAR NOT NULL,
	owner VARCHAR NOT NULL,
	kind VARCHAR NOT NULL,
	point_id VARCHAR,
	process_id BIGINT,
	process_started BIGINT,
	PRIMARY KEY (name)
);
CREATE INDEX ix_azure_vm_owner ON azure_vm (owner);
CREATE TABLE disk (
	disk_id VARCHAR NOT NULL,
	vm VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	size_bytes BIGINT NOT NULL,
	generation INTEGER NOT NULL,
	sync_parts INTEGER NOT NULL,
	sync_complete BOOLEAN NOT NULL,
	log_seq BIGINT NOT NULL,
	complete_position BIGINT NOT NULL,
	complete_time_ns BIGINT NOT NULL,
	PRIMARY KEY (disk_id),
	FOREIGN KEY(vm) REFERENCES item (vm) ON DELETE CASCADE
);
CREATE INDEX ix_disk_vm ON disk (vm);
CREATE TABLE point (
	tag_id VARCHAR NOT NULL,
	vm VARCHAR NOT NULL,
	kind VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	position BIGINT NOT NULL,
	time_ns BIGINT NOT NULL,
	downgraded_because TEXT,
	available BOOLEAN NOT NULL,
	PRIMARY KEY (tag_id),
	FOREIGN KEY(vm) REFERENCES item (vm) ON DELETE CASCADE
);
CREATE INDEX point_newest ON point (vm, available, position);
CREATE INDEX point_kind ON point (vm, available, kind, position);
CREATE TABLE cycle (
	id INTEGER NOT NULL,
	vm VARCHAR NOT NULL,
	at_ns BIGINT NOT NULL,
	PRIMARY KEY (id),
	FOREIGN KEY(vm) REFERENCES item (vm) ON DELETE CASCADE
);
CREATE INDEX ix_cycle_vm ON cycle (vm);
CREATE TABLE health_error (
	id INTEGER NOT NULL,
	vm VARCHAR NOT NULL,
	source VARCHAR NOT NULL,
	code VARCHAR NOT NULL,
	message TEXT NOT NULL,
	recoverable BOOLEAN NOT NULL,
	attempt INTEGER NOT NULL,
	next_try_ns BIGINT,
	PRIMARY KEY (id),
	FOREIGN KEY(vm) REFERENCES item (vm) ON DELETE CASCADE
);
CREATE INDEX ix_health_error_vm ON health_error (vm);
CREATE TABLE task (
	job_id INTEGER NOT NULL,
	ordinal INTEGER NOT NULL,
	name VARCHAR NOT NULL,
	friendly_name VARCHAR NOT NULL,
	state VARCHAR NOT NULL,
	state_description VARCHAR,
	start_ns BIGINT,
	end_ns BIGINT,
	PRIMARY KEY (job_id, ordinal),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE job_error (
	id INTEGER NOT NULL,
	job_id INTEGER NOT NULL,
	code VARCHAR NOT NULL,
	message TEXT NOT NULL,
	PRIMARY KEY (id),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE INDEX ix_job_error_job_id ON job_error (job_id);
CREATE TABLE mount (
	vm VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	position BIGINT NOT NULL,
	point_id VARCHAR,
	asked_time VARCHAR,
	process_id BIGINT,
	process_started BIGINT,
	PRIMARY KEY (vm, name),
	FOREIGN KEY(vm) REFERENCES item (vm) ON DELETE CASCADE
);
CREATE TABLE damage (
	id INTEGER NOT NULL,
	disk_id VARCHAR NOT NULL,
	first_position BIGINT,
	last_position BIGINT,
	by_read BOOLEAN NOT NULL,
	places INTEGER NOT NULL,
	example TEXT NOT NULL,
	PRIMARY KEY (id),
	FOREIGN KEY(disk_id) REFERENCES disk (disk_id) ON DELETE CASCADE
);
CREATE INDEX ix_damage_disk_id ON damage (disk_id);
CREATE TABLE tag_seen (
	tag_id VARCHAR NOT NULL,
	disk_id VARCHAR NOT NULL,
	PRIMARY KEY (tag_id, disk_id),
	FOREIGN KEY(tag_id) REFERENCES point (tag_id) ON DELETE CASCADE
);
INSERT INTO format VALUES (4);
INSERT INTO item VALUES ('web01', 30.0, NULL, 24, 'Protected', 'None', 'Primary', 0, NULL, 0, 900, 1800000090000000000, 0, 1800000000000000000);
INSERT INTO item VALUES ('db02', 5.0, 60.0, 72, 'CommitFailoverCompleted', 'None', 'Recovery', 1, 'LogLost', 2, 0, NULL, 500, NULL);
INSERT INTO job VALUES (1, '11111111-1111-4111-8111-111111111111', 'web01', 'enable', 'EnableDr', 'Enable replication', 'Succeeded', 'Completed', 1800000000000000000, 1800000005000000000, '{"generations": {}}', NULL, NULL);
INSERT INTO event VALUES (1, 'VmProtected', 'VmReplication', 'OK', 1800000005000000000, 'web01', 'VM ''web01'' is protected');
INSERT INTO known_disk VALUES ('site', 'web01', 'os', 1048576, '/rig/site/mnt/web01/os.img');
INSERT INTO azure_vm VALUES ('web01-test', 'web01', 'TestFailover', 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', NULL, NULL);
INSERT INTO disk VALUES ('22222222-2222-4222-8222-222222222222', 'web01', 'os', 1048576, 1, 3, 1, 40, 900, 1800000090000000000);
INSERT INTO point VALUES ('aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 'web01', 'CrashConsistent', 'first', 300, 1800000030000000000, NULL, 1);
INSERT INTO point VALUES ('bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb', 'web01', 'CrashConsistent', 'cycle', 600, 1800000060000000000, 'no agent in the guest', 1);
INSERT INTO point VALUES ('cccccccc-cccc-4ccc-8ccc-cccccccccccc', 'web01', 'ApplicationConsistent', 'cycle', 900, 1800000090000000000, NULL, 0);
INSERT INTO point VALUES ('dddddddd-dddd-4ddd-8ddd-dddddddddddd', 'web01', 'CrashConsistent', 'two days before', 100, 1799827240000000000, NULL, 1);
INSERT INTO point VALUES ('eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee', 'web01', 'CrashConsistent', 'clock ahead', 200, 1800000040000000000, NULL, 1);
INSERT INTO cycle VALUES (1, 'web01', 1800000061000000000);
INSERT INTO health_error VALUES (1, 'web01', 'replication', 'CacheUnreachable', 'the cache account cannot be reached', 1, 2, 1800000095000000000);
INSERT INTO task VALUES (1, 0, 'EnableProtectionTask', 'Enabling replication', 'Succeeded', 'Completed', 1800000000000000000, 1800000005000000000);
INSERT INTO job_error VALUES (1, 1, 'SiteTimeout', 'the site did not answer');
INSERT INTO mount VALUES ('web01', 'look', 300, 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', NULL, NULL, NULL);
INSERT INTO damage VALUES (1, '22222222-2222-4222-8222-222222222222', 100, 200, 0, 1, 'base, byte 0');
INSERT INTO tag_seen VALUES ('cccccccc-cccc-4ccc-8ccc-cccccccccccc', '22222222-2222-4222-8222-222222222222');
