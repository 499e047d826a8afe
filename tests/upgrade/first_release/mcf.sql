BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE arms (
	id INTEGER NOT NULL, 
	experiment_id VARCHAR(16) NOT NULL, 
	position INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	levels JSON NOT NULL, 
	is_baseline BOOLEAN NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (id)
);
INSERT INTO "arms" VALUES(1,'e099e766dc2',0,'mask_ratio=0.5','{"mask_ratio": "0.5"}',1);
INSERT INTO "arms" VALUES(2,'e099e766dc2',1,'mask_ratio=0.75','{"mask_ratio": "0.75"}',0);
INSERT INTO "arms" VALUES(3,'e4cc093d871',0,'mask_ratio=0.5','{"mask_ratio": "0.5"}',1);
INSERT INTO "arms" VALUES(4,'e4cc093d871',1,'mask_ratio=0.75','{"mask_ratio": "0.75"}',0);
CREATE TABLE attempts (
	run_id VARCHAR(16) NOT NULL, 
	number INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	confirmed BOOLEAN NOT NULL, 
	first_step INTEGER NOT NULL, 
	last_step INTEGER NOT NULL, 
	created_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	reason VARCHAR NOT NULL, pool VARCHAR DEFAULT '' NOT NULL, log_tail VARCHAR DEFAULT '' NOT NULL, 
	PRIMARY KEY (run_id, number), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "attempts" VALUES('r2796e6e9e617',1,'succeeded',1,0,3,'2026-11-29 19:50:58.383163','2026-11-29 19:51:15.116796','','local','2026-11-29 19:51:08,771 rank 0 INFO trainer: run 2796e6e9e617 on 1 workers, cpu
2026-11-29 19:51:10,568 rank 0 INFO trainer.evaluation.evaluate: probe/accuracy 41.667, raw pixels 45.833, untrained encoder 41.667
2026-11-29 19:51:12,731 rank 0 INFO trainer.conclude: done: sanity/psnr 11.9, sanity/retrieval_top1 50, probe/accuracy 41.67, probe/accuracy/low 25, probe/accuracy/high 62.5, floor/pixels 45.83, floor/random_encoder 41.67
');
INSERT INTO "attempts" VALUES('r2f73e6e07e31',1,'succeeded',1,0,3,'2026-11-29 19:51:16.261893','2026-11-29 19:51:36.098416','','local','2026-11-29 19:51:28,679 rank 0 INFO trainer: run 2f73e6e07e31 on 1 workers, cpu
2026-11-29 19:51:30,993 rank 0 INFO trainer.evaluation.evaluate: probe/accuracy 41.667, raw pixels 45.833, untrained encoder 41.667
2026-11-29 19:51:33,480 rank 0 INFO trainer.conclude: done: sanity/psnr 11.9, sanity/retrieval_top1 50, probe/accuracy 41.67, probe/accuracy/low 25, probe/accuracy/high 62.5, floor/pixels 45.83, floor/random_encoder 41.67
');
INSERT INTO "attempts" VALUES('rb10637123982',1,'succeeded',1,0,3,'2026-11-29 19:51:37.364987','2026-11-29 19:51:54.142113','','local','2026-11-29 19:51:48,858 rank 0 INFO trainer: run b10637123982 on 1 workers, cpu
2026-11-29 19:51:50,283 rank 0 INFO trainer.evaluation.evaluate: probe/accuracy 58.333, raw pixels 45.833, untrained encoder 58.333
2026-11-29 19:51:51,872 rank 0 INFO trainer.conclude: done: sanity/psnr 11.96, sanity/retrieval_top1 75, probe/accuracy 58.33, probe/accuracy/low 37.5, probe/accuracy/high 75, floor/pixels 45.83, floor/random_encoder 58.33
');
INSERT INTO "attempts" VALUES('r58f0683f90fd',1,'succeeded',1,0,3,'2026-11-29 19:51:55.308247','2026-11-29 19:52:06.578151','','local','2026-11-29 19:52:02,487 rank 0 INFO trainer: run 58f0683f90fd on 1 workers, cpu
2026-11-29 19:52:03,732 rank 0 INFO trainer.evaluation.evaluate: probe/accuracy 58.333, raw pixels 45.833, untrained encoder 58.333
2026-11-29 19:52:04,587 rank 0 INFO trainer.conclude: done: sanity/psnr 11.96, sanity/retrieval_top1 75, probe/accuracy 58.33, probe/accuracy/low 37.5, probe/accuracy/high 75, floor/pixels 45.83, floor/random_encoder 58.33
');
INSERT INTO "attempts" VALUES('ra92bdcacc067',1,'succeeded',1,0,3,'2026-11-29 19:52:08.142149','2026-11-29 19:52:24.813676','','local','2026-11-29 19:52:18,546 rank 0 INFO trainer: run 2796e6e9e617 on 1 workers, cpu
2026-11-29 19:52:20,272 rank 0 INFO trainer.evaluation.evaluate: probe/accuracy 41.667, raw pixels 45.833, untrained encoder 41.667
2026-11-29 19:52:21,901 rank 0 INFO trainer.conclude: done: sanity/psnr 11.9, sanity/retrieval_top1 50, probe/accuracy 41.67, probe/accuracy/low 25, probe/accuracy/high 62.5, floor/pixels 45.83, floor/random_encoder 41.67
');
INSERT INTO "attempts" VALUES('r67c7c31a452d',1,'succeeded',1,0,3,'2026-11-29 19:52:25.973532','2026-11-29 19:52:43.068034','','local','2026-11-29 19:52:35,229 rank 0 INFO trainer: run 2f73e6e07e31 on 1 workers, cpu
2026-11-29 19:52:37,664 rank 0 INFO trainer.evaluation.evaluate: probe/accuracy 41.667, raw pixels 45.833, untrained encoder 41.667
2026-11-29 19:52:40,302 rank 0 INFO trainer.conclude: done: sanity/psnr 11.9, sanity/retrieval_top1 50, probe/accuracy 41.67, probe/accuracy/low 25, probe/accuracy/high 62.5, floor/pixels 45.83, floor/random_encoder 41.67
');
CREATE TABLE "experiments" (
	id VARCHAR(16) NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	spec JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	idempotency_key VARCHAR(200), 
	request_digest VARCHAR(64) NOT NULL, 
	concurrency INTEGER NOT NULL, 
	priority INTEGER NOT NULL, 
	gpu_hours DOUBLE, 
	cancelled_at DATETIME, 
	cancel_reason VARCHAR NOT NULL, 
	tracking_id VARCHAR, 
	tracking_run_id VARCHAR, 
	published BOOLEAN NOT NULL, 
	lease_token VARCHAR(32), 
	lease_expires_at DATETIME, 
	next_check_at DATETIME NOT NULL, 
	project VARCHAR(63) DEFAULT 'default' NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT experiments_key_of_project UNIQUE (project, idempotency_key)
);
INSERT INTO "experiments" VALUES('e099e766dc2','before','{"name": "before", "base": {"preset": "tiny", "data": {"uri": "{FOLDER}/faces"}, "input_size": 16, "teacher": {"source": "random", "arch": "as-encoder", "taps": [0, 3]}, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "contrastive": {"hidden": 16, "dim": 8}, "precision": "float32", "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "schedule": {"unit": "steps", "length": 3, "warmup": 1}, "evaluation": {"held_out": 4, "labels": "{FOLDER}/labels.csv", "folds": 3}, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "picture_steps": 3}}, "factors": {"mask_ratio": [0.5, 0.75]}, "seeds": 2, "baseline": {}, "concurrency": 1, "placement": {"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}, "gpu_hours": null, "share": true}','2026-11-29 19:50:56.452238','f08b80c38bc147e7b4bf4af3506833e4','00e8f1190ba5207a9e63ebaa7454c459cd2d52014d3bb9631c28988c006d20eb',1,0,NULL,NULL,'','1','2bf4e772ccf7458483866c437dac2d51',1,NULL,NULL,'2026-11-29 19:52:13.758792','default');
INSERT INTO "experiments" VALUES('e4cc093d871','private','{"name": "private", "base": {"preset": "tiny", "data": {"uri": "{FOLDER}/faces"}, "input_size": 16, "teacher": {"source": "random", "arch": "as-encoder", "taps": [0, 3]}, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "contrastive": {"hidden": 16, "dim": 8}, "precision": "float32", "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "schedule": {"unit": "steps", "length": 3, "warmup": 1}, "evaluation": {"held_out": 4, "labels": "{FOLDER}/labels.csv", "folds": 3}, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "picture_steps": 3}}, "factors": {"mask_ratio": [0.5, 0.75]}, "seeds": 1, "baseline": {}, "concurrency": 1, "placement": {"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}, "gpu_hours": null, "share": false}','2026-11-29 19:52:07.271535','01c1f82062774eae813974c8c28ff7e7','16e14c629b862f2a4845de0038b999f2a8397725e3ec4d2b698536d8e2162bde',1,0,NULL,NULL,'','2','41a2e976026f41e1b1c963762f413741',1,NULL,NULL,'2026-11-29 19:52:48.235883','default');
CREATE TABLE runs (
	id VARCHAR(16) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	spec JSON NOT NULL, 
	placement JSON NOT NULL, 
	home_id VARCHAR(16) NOT NULL, 
	created_at DATETIME NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	admitted BOOLEAN NOT NULL, 
	waiting_reason VARCHAR NOT NULL, 
	cancel_reason VARCHAR NOT NULL, 
	not_before DATETIME, 
	fruitless INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	stage VARCHAR NOT NULL, 
	step INTEGER NOT NULL, 
	total_steps INTEGER NOT NULL, 
	images_per_second DOUBLE, 
	losses JSON NOT NULL, 
	restarts INTEGER NOT NULL, 
	world_sizes JSON NOT NULL, 
	train_seconds DOUBLE NOT NULL, 
	process_seconds DOUBLE NOT NULL, 
	started_at DATETIME, 
	ended_at DATETIME, 
	result JSON, 
	tracking_id VARCHAR, 
	tracking_run_id VARCHAR, 
	settled BOOLEAN NOT NULL, 
	lease_token VARCHAR(32), 
	lease_expires_at DATETIME, 
	next_check_at DATETIME NOT NULL, sessions JSON DEFAULT '[]' NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(home_id) REFERENCES experiments (id)
);
INSERT INTO "runs" VALUES('r2796e6e9e617','2796e6e9e6174d768cf9bbe669f3b47dd4368da86bb11b77be95729284f9a23b','{"data": {"uri": "{FOLDER}/faces", "format": "folder", "keys": null, "index": null, "subset_size": null, "subset_seed": 0, "fit": "crop", "flip": true, "max_undecodable": 0.001, "sha256": "26465285142d9e55c9c6e0ad38045dedf4f32071333ce9754cf64293a07d487e"}, "input_size": 16, "mask_ratio": 0.5, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "teacher": {"source": "random", "sha256": null, "arch": "as-encoder", "taps": [0, 3], "tokens": "all", "input_size": null, "resize": "nearest", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalise": "tokens", "visible": "predicted", "weight": 1000.0, "seed": 0}, "pixels": {"weight": null, "normalise": "image", "patches": "hidden"}, "initial": {"source": "none", "sha256": null, "parts": "all"}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "contrastive": {"weight": 1.0, "temperature": 0.2, "hidden": 16, "dim": 8, "target_mask_ratio": null}, "ema": {"momentum": 0.99, "ramp": "constant", "per": "group"}, "optimizer": {"base_lr": 0.002, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.05, "clip_norm": null}, "schedule": {"unit": "steps", "length": 3.0, "warmup": 1.0, "min_lr": 0.0}, "precision": "float32", "seed": 0, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "log_steps": 5, "picture_steps": 3}, "evaluation": {"held_out": 4, "mask_ratio": 0.75, "images": null, "landmarks": null, "labels": "{FOLDER}/labels.csv", "folds": 3, "sha256": "95c2b39f8b1b72347485b8da0d375e7320933fb619b50851aa87f7f260811520"}}','{"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}','e099e766dc2','2026-11-29 19:50:56.456013','succeeded',0,'','',NULL,0,'','','done',3,3,NULL,'{"total": 512.9083862304688, "perceptual": 0.5116718858480453, "contrastive": 1.2365009188652039}',0,'[1]',4.502044,4.502044,'2026-11-29 19:51:08.230000','2026-11-29 19:51:15.072220','{"steps": 3, "images_seen": 24, "subset_size": 20, "subset_digest": "4e1651238829b88f9814d8b60e819e16ea30c034ba13247be7d0f808e1ba402b", "held_out_digest": "7f62b608d9cd721d5f1edca1653ab138e1a1e62c9901330195ac4701903076b8", "undecodable": [], "probe": {"name": "probe/accuracy", "value": 41.666666666666664, "unit": "%", "higher_is_better": true, "low": 25.0, "high": 62.5}, "floors": {"pixels": 45.833333333333336, "random_encoder": 41.666666666666664}, "probe_note": "24 images in 3 folds, 0 annotated ones left out; 2 labels, always the commonest one would reach 50.0 %; 20 of the images were trained on, without their annotations", "sanity": [{"name": "sanity/psnr", "value": 11.899070739746094, "unit": "dB", "higher_is_better": true, "low": null, "high": null}, {"name": "sanity/retrieval_top1", "value": 50.0, "unit": "%", "higher_is_better": true, "low": null, "high": null}], "stages": [], "losses": {"total": 512.9083862304688, "perceptual": 0.5116718858480453, "contrastive": 1.2365009188652039}, "export": "s3://mcf/runs/r2796e6e9e617/export", "software": {"python": "3.11.7", "mcf": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6", "commit": "6d68dd9189aedb3a83d3fe5e24223870903edebb"}}','1','a573ccb9cf1c49b8a2c810215a1d6e07',1,NULL,NULL,'2026-11-29 19:51:15.072220','[{"attempt": 1, "world_size": 1, "first_step": 0, "step": 3, "started_at": "2026-11-29T19:51:08.230000Z", "seen_at": "2026-11-29T19:51:12.732044Z"}]');
INSERT INTO "runs" VALUES('r2f73e6e07e31','2f73e6e07e315443ab36b719465845bf641e3fd84eb36de4bae22c70cdf48a45','{"data": {"uri": "{FOLDER}/faces", "format": "folder", "keys": null, "index": null, "subset_size": null, "subset_seed": 0, "fit": "crop", "flip": true, "max_undecodable": 0.001, "sha256": "26465285142d9e55c9c6e0ad38045dedf4f32071333ce9754cf64293a07d487e"}, "input_size": 16, "mask_ratio": 0.75, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "teacher": {"source": "random", "sha256": null, "arch": "as-encoder", "taps": [0, 3], "tokens": "all", "input_size": null, "resize": "nearest", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalise": "tokens", "visible": "predicted", "weight": 1000.0, "seed": 0}, "pixels": {"weight": null, "normalise": "image", "patches": "hidden"}, "initial": {"source": "none", "sha256": null, "parts": "all"}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "contrastive": {"weight": 1.0, "temperature": 0.2, "hidden": 16, "dim": 8, "target_mask_ratio": null}, "ema": {"momentum": 0.99, "ramp": "constant", "per": "group"}, "optimizer": {"base_lr": 0.002, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.05, "clip_norm": null}, "schedule": {"unit": "steps", "length": 3.0, "warmup": 1.0, "min_lr": 0.0}, "precision": "float32", "seed": 0, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "log_steps": 5, "picture_steps": 3}, "evaluation": {"held_out": 4, "mask_ratio": 0.75, "images": null, "landmarks": null, "labels": "{FOLDER}/labels.csv", "folds": 3, "sha256": "95c2b39f8b1b72347485b8da0d375e7320933fb619b50851aa87f7f260811520"}}','{"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}','e099e766dc2','2026-11-29 19:50:56.456013','succeeded',0,'','',NULL,0,'','','done',3,3,NULL,'{"total": 485.0197296142578, "perceptual": 0.48388029634952545, "contrastive": 1.1394358277320862}',0,'[1]',5.701562,5.701562,'2026-11-29 19:51:27.780000','2026-11-29 19:51:36.033947','{"steps": 3, "images_seen": 24, "subset_size": 20, "subset_digest": "4e1651238829b88f9814d8b60e819e16ea30c034ba13247be7d0f808e1ba402b", "held_out_digest": "7f62b608d9cd721d5f1edca1653ab138e1a1e62c9901330195ac4701903076b8", "undecodable": [], "probe": {"name": "probe/accuracy", "value": 41.666666666666664, "unit": "%", "higher_is_better": true, "low": 25.0, "high": 62.5}, "floors": {"pixels": 45.833333333333336, "random_encoder": 41.666666666666664}, "probe_note": "24 images in 3 folds, 0 annotated ones left out; 2 labels, always the commonest one would reach 50.0 %; 20 of the images were trained on, without their annotations", "sanity": [{"name": "sanity/psnr", "value": 11.899019241333008, "unit": "dB", "higher_is_better": true, "low": null, "high": null}, {"name": "sanity/retrieval_top1", "value": 50.0, "unit": "%", "higher_is_better": true, "low": null, "high": null}], "stages": [], "losses": {"total": 485.0197296142578, "perceptual": 0.48388029634952545, "contrastive": 1.1394358277320862}, "export": "s3://mcf/runs/r2f73e6e07e31/export", "software": {"python": "3.11.7", "mcf": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6", "commit": "6d68dd9189aedb3a83d3fe5e24223870903edebb"}}','1','658482e2e90b491ab565d9dbd47d35dc',1,NULL,NULL,'2026-11-29 19:51:36.033947','[{"attempt": 1, "world_size": 1, "first_step": 0, "step": 3, "started_at": "2026-11-29T19:51:27.780000Z", "seen_at": "2026-11-29T19:51:33.481562Z"}]');
INSERT INTO "runs" VALUES('rb10637123982','b10637123982f677e4c11771c3393764d8057ea80de7cad9769ba9b24456402b','{"data": {"uri": "{FOLDER}/faces", "format": "folder", "keys": null, "index": null, "subset_size": null, "subset_seed": 0, "fit": "crop", "flip": true, "max_undecodable": 0.001, "sha256": "26465285142d9e55c9c6e0ad38045dedf4f32071333ce9754cf64293a07d487e"}, "input_size": 16, "mask_ratio": 0.5, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "teacher": {"source": "random", "sha256": null, "arch": "as-encoder", "taps": [0, 3], "tokens": "all", "input_size": null, "resize": "nearest", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalise": "tokens", "visible": "predicted", "weight": 1000.0, "seed": 0}, "pixels": {"weight": null, "normalise": "image", "patches": "hidden"}, "initial": {"source": "none", "sha256": null, "parts": "all"}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "contrastive": {"weight": 1.0, "temperature": 0.2, "hidden": 16, "dim": 8, "target_mask_ratio": null}, "ema": {"momentum": 0.99, "ramp": "constant", "per": "group"}, "optimizer": {"base_lr": 0.002, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.05, "clip_norm": null}, "schedule": {"unit": "steps", "length": 3.0, "warmup": 1.0, "min_lr": 0.0}, "precision": "float32", "seed": 1, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "log_steps": 5, "picture_steps": 3}, "evaluation": {"held_out": 4, "mask_ratio": 0.75, "images": null, "landmarks": null, "labels": "{FOLDER}/labels.csv", "folds": 3, "sha256": "95c2b39f8b1b72347485b8da0d375e7320933fb619b50851aa87f7f260811520"}}','{"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}','e099e766dc2','2026-11-29 19:50:56.456013','succeeded',0,'','',NULL,0,'','','done',3,3,NULL,'{"total": 558.6862487792969, "perceptual": 0.5572423338890076, "contrastive": 1.4439174234867096}',0,'[1]',3.372716,3.372716,'2026-11-29 19:51:48.500000','2026-11-29 19:51:54.128723','{"steps": 3, "images_seen": 24, "subset_size": 20, "subset_digest": "4e1651238829b88f9814d8b60e819e16ea30c034ba13247be7d0f808e1ba402b", "held_out_digest": "7f62b608d9cd721d5f1edca1653ab138e1a1e62c9901330195ac4701903076b8", "undecodable": [], "probe": {"name": "probe/accuracy", "value": 58.333333333333336, "unit": "%", "higher_is_better": true, "low": 37.5, "high": 75.0}, "floors": {"pixels": 45.833333333333336, "random_encoder": 58.333333333333336}, "probe_note": "24 images in 3 folds, 0 annotated ones left out; 2 labels, always the commonest one would reach 50.0 %; 20 of the images were trained on, without their annotations", "sanity": [{"name": "sanity/psnr", "value": 11.962117195129395, "unit": "dB", "higher_is_better": true, "low": null, "high": null}, {"name": "sanity/retrieval_top1", "value": 75.0, "unit": "%", "higher_is_better": true, "low": null, "high": null}], "stages": [], "losses": {"total": 558.6862487792969, "perceptual": 0.5572423338890076, "contrastive": 1.4439174234867096}, "export": "s3://mcf/runs/rb10637123982/export", "software": {"python": "3.11.7", "mcf": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6", "commit": "6d68dd9189aedb3a83d3fe5e24223870903edebb"}}','1','a8812557730349c9a2ac0de425d64f11',1,NULL,NULL,'2026-11-29 19:51:54.128723','[{"attempt": 1, "world_size": 1, "first_step": 0, "step": 3, "started_at": "2026-11-29T19:51:48.500000Z", "seen_at": "2026-11-29T19:51:51.872716Z"}]');
INSERT INTO "runs" VALUES('r58f0683f90fd','58f0683f90fdc624af7a943e5a3279d75bcc30edda649738880ad4f9109a1d2c','{"data": {"uri": "{FOLDER}/faces", "format": "folder", "keys": null, "index": null, "subset_size": null, "subset_seed": 0, "fit": "crop", "flip": true, "max_undecodable": 0.001, "sha256": "26465285142d9e55c9c6e0ad38045dedf4f32071333ce9754cf64293a07d487e"}, "input_size": 16, "mask_ratio": 0.75, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "teacher": {"source": "random", "sha256": null, "arch": "as-encoder", "taps": [0, 3], "tokens": "all", "input_size": null, "resize": "nearest", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalise": "tokens", "visible": "predicted", "weight": 1000.0, "seed": 0}, "pixels": {"weight": null, "normalise": "image", "patches": "hidden"}, "initial": {"source": "none", "sha256": null, "parts": "all"}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "contrastive": {"weight": 1.0, "temperature": 0.2, "hidden": 16, "dim": 8, "target_mask_ratio": null}, "ema": {"momentum": 0.99, "ramp": "constant", "per": "group"}, "optimizer": {"base_lr": 0.002, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.05, "clip_norm": null}, "schedule": {"unit": "steps", "length": 3.0, "warmup": 1.0, "min_lr": 0.0}, "precision": "float32", "seed": 1, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "log_steps": 5, "picture_steps": 3}, "evaluation": {"held_out": 4, "mask_ratio": 0.75, "images": null, "landmarks": null, "labels": "{FOLDER}/labels.csv", "folds": 3, "sha256": "95c2b39f8b1b72347485b8da0d375e7320933fb619b50851aa87f7f260811520"}}','{"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}','e099e766dc2','2026-11-29 19:50:56.456013','succeeded',0,'','',NULL,0,'','','done',3,3,NULL,'{"total": 580.5663452148438, "perceptual": 0.5792930722236633, "contrastive": 1.2732737362384796}',0,'[1]',2.498185,2.498185,'2026-11-29 19:52:02.090000','2026-11-29 19:52:06.560153','{"steps": 3, "images_seen": 24, "subset_size": 20, "subset_digest": "4e1651238829b88f9814d8b60e819e16ea30c034ba13247be7d0f808e1ba402b", "held_out_digest": "7f62b608d9cd721d5f1edca1653ab138e1a1e62c9901330195ac4701903076b8", "undecodable": [], "probe": {"name": "probe/accuracy", "value": 58.333333333333336, "unit": "%", "higher_is_better": true, "low": 37.5, "high": 75.0}, "floors": {"pixels": 45.833333333333336, "random_encoder": 58.333333333333336}, "probe_note": "24 images in 3 folds, 0 annotated ones left out; 2 labels, always the commonest one would reach 50.0 %; 20 of the images were trained on, without their annotations", "sanity": [{"name": "sanity/psnr", "value": 11.962507247924805, "unit": "dB", "higher_is_better": true, "low": null, "high": null}, {"name": "sanity/retrieval_top1", "value": 75.0, "unit": "%", "higher_is_better": true, "low": null, "high": null}], "stages": [], "losses": {"total": 580.5663452148438, "perceptual": 0.5792930722236633, "contrastive": 1.2732737362384796}, "export": "s3://mcf/runs/r58f0683f90fd/export", "software": {"python": "3.11.7", "mcf": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6", "commit": "6d68dd9189aedb3a83d3fe5e24223870903edebb"}}','1','5d2256eb30ad443699c0ac6fdb38851f',1,NULL,NULL,'2026-11-29 19:52:06.560153','[{"attempt": 1, "world_size": 1, "first_step": 0, "step": 3, "started_at": "2026-11-29T19:52:02.090000Z", "seen_at": "2026-11-29T19:52:04.588185Z"}]');
INSERT INTO "runs" VALUES('ra92bdcacc067','2796e6e9e6174d768cf9bbe669f3b47dd4368da86bb11b77be95729284f9a23b','{"data": {"uri": "{FOLDER}/faces", "format": "folder", "keys": null, "index": null, "subset_size": null, "subset_seed": 0, "fit": "crop", "flip": true, "max_undecodable": 0.001, "sha256": "26465285142d9e55c9c6e0ad38045dedf4f32071333ce9754cf64293a07d487e"}, "input_size": 16, "mask_ratio": 0.5, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "teacher": {"source": "random", "sha256": null, "arch": "as-encoder", "taps": [0, 3], "tokens": "all", "input_size": null, "resize": "nearest", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalise": "tokens", "visible": "predicted", "weight": 1000.0, "seed": 0}, "pixels": {"weight": null, "normalise": "image", "patches": "hidden"}, "initial": {"source": "none", "sha256": null, "parts": "all"}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "contrastive": {"weight": 1.0, "temperature": 0.2, "hidden": 16, "dim": 8, "target_mask_ratio": null}, "ema": {"momentum": 0.99, "ramp": "constant", "per": "group"}, "optimizer": {"base_lr": 0.002, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.05, "clip_norm": null}, "schedule": {"unit": "steps", "length": 3.0, "warmup": 1.0, "min_lr": 0.0}, "precision": "float32", "seed": 0, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "log_steps": 5, "picture_steps": 3}, "evaluation": {"held_out": 4, "mask_ratio": 0.75, "images": null, "landmarks": null, "labels": "{FOLDER}/labels.csv", "folds": 3, "sha256": "95c2b39f8b1b72347485b8da0d375e7320933fb619b50851aa87f7f260811520"}}','{"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}','e4cc093d871','2026-11-29 19:52:07.273111','succeeded',0,'','',NULL,0,'','','done',3,3,NULL,'{"total": 512.9083862304688, "perceptual": 0.5116718858480453, "contrastive": 1.2365009188652039}',0,'[1]',3.841918,3.841918,'2026-11-29 19:52:18.060000','2026-11-29 19:52:24.671103','{"steps": 3, "images_seen": 24, "subset_size": 20, "subset_digest": "4e1651238829b88f9814d8b60e819e16ea30c034ba13247be7d0f808e1ba402b", "held_out_digest": "7f62b608d9cd721d5f1edca1653ab138e1a1e62c9901330195ac4701903076b8", "undecodable": [], "probe": {"name": "probe/accuracy", "value": 41.666666666666664, "unit": "%", "higher_is_better": true, "low": 25.0, "high": 62.5}, "floors": {"pixels": 45.833333333333336, "random_encoder": 41.666666666666664}, "probe_note": "24 images in 3 folds, 0 annotated ones left out; 2 labels, always the commonest one would reach 50.0 %; 20 of the images were trained on, without their annotations", "sanity": [{"name": "sanity/psnr", "value": 11.899070739746094, "unit": "dB", "higher_is_better": true, "low": null, "high": null}, {"name": "sanity/retrieval_top1", "value": 50.0, "unit": "%", "higher_is_better": true, "low": null, "high": null}], "stages": [], "losses": {"total": 512.9083862304688, "perceptual": 0.5116718858480453, "contrastive": 1.2365009188652039}, "export": "s3://mcf/runs/ra92bdcacc067/export", "software": {"python": "3.11.7", "mcf": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6", "commit": "6d68dd9189aedb3a83d3fe5e24223870903edebb"}}','2','83df8fee0f064c1a8507d5ad93f31c68',1,NULL,NULL,'2026-11-29 19:52:24.671103','[{"attempt": 1, "world_size": 1, "first_step": 0, "step": 3, "started_at": "2026-11-29T19:52:18.060000Z", "seen_at": "2026-11-29T19:52:21.901918Z"}]');
INSERT INTO "runs" VALUES('r67c7c31a452d','2f73e6e07e315443ab36b719465845bf641e3fd84eb36de4bae22c70cdf48a45','{"data": {"uri": "{FOLDER}/faces", "format": "folder", "keys": null, "index": null, "subset_size": null, "subset_seed": 0, "fit": "crop", "flip": true, "max_undecodable": 0.001, "sha256": "26465285142d9e55c9c6e0ad38045dedf4f32071333ce9754cf64293a07d487e"}, "input_size": 16, "mask_ratio": 0.75, "encoder": {"width": 16, "depth": 4, "heads": 1, "patch": 8}, "decoder": {"width": 8, "depth": 1, "heads": 1}, "teacher": {"source": "random", "sha256": null, "arch": "as-encoder", "taps": [0, 3], "tokens": "all", "input_size": null, "resize": "nearest", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalise": "tokens", "visible": "predicted", "weight": 1000.0, "seed": 0}, "pixels": {"weight": null, "normalise": "image", "patches": "hidden"}, "initial": {"source": "none", "sha256": null, "parts": "all"}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 8}, "contrastive": {"weight": 1.0, "temperature": 0.2, "hidden": 16, "dim": 8, "target_mask_ratio": null}, "ema": {"momentum": 0.99, "ramp": "constant", "per": "group"}, "optimizer": {"base_lr": 0.002, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.05, "clip_norm": null}, "schedule": {"unit": "steps", "length": 3.0, "warmup": 1.0, "min_lr": 0.0}, "precision": "float32", "seed": 0, "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 1, "log_steps": 5, "picture_steps": 3}, "evaluation": {"held_out": 4, "mask_ratio": 0.75, "images": null, "landmarks": null, "labels": "{FOLDER}/labels.csv", "folds": 3, "sha256": "95c2b39f8b1b72347485b8da0d375e7320933fb619b50851aa87f7f260811520"}}','{"pool": "local", "min_nodes": 1, "max_nodes": 1, "processes_per_node": 1, "priority": 0, "teacher_cache_gib": 0.0, "compile": false}','e4cc093d871','2026-11-29 19:52:07.273111','succeeded',0,'','',NULL,0,'','','done',3,3,NULL,'{"total": 485.0197296142578, "perceptual": 0.48388029634952545, "contrastive": 1.1394358277320862}',0,'[1]',5.552944,5.552944,'2026-11-29 19:52:34.750000','2026-11-29 19:52:43.036876','{"steps": 3, "images_seen": 24, "subset_size": 20, "subset_digest": "4e1651238829b88f9814d8b60e819e16ea30c034ba13247be7d0f808e1ba402b", "held_out_digest": "7f62b608d9cd721d5f1edca1653ab138e1a1e62c9901330195ac4701903076b8", "undecodable": [], "probe": {"name": "probe/accuracy", "value": 41.666666666666664, "unit": "%", "higher_is_better": true, "low": 25.0, "high": 62.5}, "floors": {"pixels": 45.833333333333336, "random_encoder": 41.666666666666664}, "probe_note": "24 images in 3 folds, 0 annotated ones left out; 2 labels, always the commonest one would reach 50.0 %; 20 of the images were trained on, without their annotations", "sanity": [{"name": "sanity/psnr", "value": 11.899019241333008, "unit": "dB", "higher_is_better": true, "low": null, "high": null}, {"name": "sanity/retrieval_top1", "value": 50.0, "unit": "%", "higher_is_better": true, "low": null, "high": null}], "stages": [], "losses": {"total": 485.0197296142578, "perceptual": 0.48388029634952545, "contrastive": 1.1394358277320862}, "export": "s3://mcf/runs/r67c7c31a452d/export", "software": {"python": "3.11.7", "mcf": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6", "commit": "6d68dd9189aedb3a83d3fe5e24223870903edebb"}}','2','204adf94d34043568548f9045d22288f',1,NULL,NULL,'2026-11-29 19:52:43.036876','[{"attempt": 1, "world_size": 1, "first_step": 0, "step": 3, "started_at": "2026-11-29T19:52:34.750000Z", "seen_at": "2026-11-29T19:52:40.302944Z"}]');
CREATE TABLE tokens (
	id VARCHAR(16) NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scope VARCHAR(16) NOT NULL, 
	project VARCHAR(63), 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	last_used_at DATETIME, 
	PRIMARY KEY (id)
);
CREATE TABLE trials (
	id INTEGER NOT NULL, 
	experiment_id VARCHAR(16) NOT NULL, 
	arm_id INTEGER NOT NULL, 
	seed INTEGER NOT NULL, 
	run_id VARCHAR(16) NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(arm_id) REFERENCES arms (id), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (id), 
	FOREIGN KEY(run_id) REFERENCES runs (id), 
	UNIQUE (arm_id, seed)
);
INSERT INTO "trials" VALUES(1,'e099e766dc2',1,0,'r2796e6e9e617');
INSERT INTO "trials" VALUES(2,'e099e766dc2',2,0,'r2f73e6e07e31');
INSERT INTO "trials" VALUES(3,'e099e766dc2',1,1,'rb10637123982');
INSERT INTO "trials" VALUES(4,'e099e766dc2',2,1,'r58f0683f90fd');
INSERT INTO "trials" VALUES(5,'e4cc093d871',3,0,'ra92bdcacc067');
INSERT INTO "trials" VALUES(6,'e4cc093d871',4,0,'r67c7c31a452d');
CREATE INDEX ix_arms_experiment_id ON arms (experiment_id);
CREATE INDEX ix_runs_digest ON runs (digest);
CREATE INDEX ix_runs_home_id ON runs (home_id);
CREATE INDEX runs_due ON runs (settled, next_check_at);
CREATE INDEX runs_state ON runs (state);
CREATE INDEX ix_trials_arm_id ON trials (arm_id);
CREATE INDEX ix_trials_experiment_id ON trials (experiment_id);
CREATE INDEX ix_trials_run_id ON trials (run_id);
CREATE INDEX experiments_newest ON experiments (created_at, id);
CREATE INDEX experiments_due ON experiments (published);
CREATE INDEX experiments_of_project ON experiments (project, created_at, id);
COMMIT;
