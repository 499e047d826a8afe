{{/* What no schema can say: values that do not go together. Each message says what to set. */}}
{{- define "mcf.checks" -}}
{{- $kinds := dict "jobset" "kueue" "volcano" "volcano" }}
{{- with .Values }}
{{- $kind := get $kinds .scheduler }}
{{- if not .store.uri }}{{ fail "store.uri: where runs leave checkpoints and results; set it to s3://bucket/prefix" }}{{ end }}
{{- if and .postgresql.enabled .database.existingSecret }}{{ fail "database.existingSecret names a PostgreSQL of your own; with it set postgresql.enabled=false" }}{{ end }}
{{- if not (or .postgresql.enabled .database.existingSecret) }}{{ fail "postgresql.enabled=false needs database.existingSecret: a Secret whose key `url` is postgresql://user:password@host/database" }}{{ end }}
{{- if .mlflow.enabled }}
{{- if not (or .postgresql.enabled .mlflow.database.existingSecret) }}{{ fail "MLflow wants a database of its own: set mlflow.database.existingSecret, a Secret whose key `url` is postgresql://user:password@host/mlflow" }}{{ end }}
{{- if .mlflow.url }}{{ fail "mlflow.url names an MLflow of your own; with it set mlflow.enabled=false" }}{{ end }}
{{- if and (not .mlflow.auth.enabled) (or .mlflow.auth.existingSecret .mlflow.auth.existingRunsSecret) }}{{ fail "mlflow.auth.enabled=false: nobody logs in, so leave mlflow.auth.existingSecret and existingRunsSecret empty" }}{{ end }}
{{- else }}
{{- if .mlflow.ingress.enabled }}{{ fail "mlflow.enabled=false: there is no server behind mlflow.ingress; set mlflow.ingress.enabled=false" }}{{ end }}
{{- if .mlflow.database.existingSecret }}{{ fail "mlflow.enabled=false: no server reads mlflow.database.existingSecret; leave it empty" }}{{ end }}
{{- if and (not .mlflow.url) (or .mlflow.auth.existingSecret .mlflow.auth.existingRunsSecret) }}{{ fail "mlflow.auth names a login, but there is no MLflow: set mlflow.url, or mlflow.enabled=true" }}{{ end }}
{{- end }}
{{- range $name, $ingress := dict "service" .service.ingress "mlflow" .mlflow.ingress }}
{{- if and $ingress.enabled (ne $ingress.path "/") }}{{ fail (printf "%s.ingress.path: %s was asked for, but it answers only at the root of a host: leave it at /, and give it a host of its own with %s.ingress.host" $name $ingress.path $name) }}{{ end }}
{{- if and $ingress.enabled (not $ingress.host) }}{{ fail (printf "%s.ingress.enabled=true needs %s.ingress.host" $name $name) }}{{ end }}
{{- end }}
{{- range $name, $account := dict "service" .service.serviceAccount "mlflow" .mlflow.serviceAccount "trainer" .trainer.serviceAccount }}
{{- if and (not $account.create) $account.annotations }}{{ fail (printf "%s.serviceAccount.annotations are those of an account that the chart makes: set %s.serviceAccount.create=true, or annotate the account yourself" $name $name) }}{{ end }}
{{- end }}
{{- if and .rbac.create (not .service.serviceAccount.create) (not .service.serviceAccount.name) }}{{ fail "service.serviceAccount.create=false needs service.serviceAccount.name: else every pod under the namespace's default account would have the service's rights" }}{{ end }}
{{- if and .uninstall.deleteRuns (not .rbac.create) }}{{ fail "uninstall.deleteRuns=true needs rbac.create=true, or delete the attempts yourself" }}{{ end }}
{{- if and (not .networkPolicy.enabled) (or .networkPolicy.clients .networkPolicy.egressPorts) }}{{ fail "networkPolicy.clients and egressPorts are without effect: set networkPolicy.enabled=true" }}{{ end }}
{{- $pools := dict }}
{{- range $name, $pool := .pools }}
{{- if kindIs "map" $pool }}{{ $_ := set $pools $name $pool }}{{ end }}
{{- end }}
{{- if not $pools }}{{ fail "pools: runs have nowhere to go; name at least one" }}{{ end }}
{{- range $name, $pool := $pools }}
{{- with $pool.queue }}
{{- if ne (default "kueue" .kind) $kind }}{{ fail (printf "pools.%s.queue.kind: with scheduler=%s it has to be %s" $name $.Values.scheduler $kind) }}{{ end }}
{{- end }}
{{- end }}
{{- range .queues }}
{{- if ne .kind $kind }}{{ fail (printf "queues: %s is a queue of %s; with scheduler=%s its kind has to be %s" .name .kind $.Values.scheduler $kind) }}{{ end }}
{{- if and (eq .kind "kueue") (not .clusterQueue) }}{{ fail (printf "queues: the Kueue queue %s needs clusterQueue" .name) }}{{ end }}
{{- if and (eq .kind "kueue") (or .weight .capability) }}{{ fail (printf "queues: weight and capability of %s are Volcano's; Kueue's quota is in the ClusterQueue" .name) }}{{ end }}
{{- if and (eq .kind "volcano") .clusterQueue }}{{ fail (printf "queues: clusterQueue of %s is Kueue's; for Volcano leave it out" .name) }}{{ end }}
{{- end }}
{{- $ours := dict "MCF_STORE" "store.uri" "MCF_TRACKING_URI" "mlflow.url" "MCF_SCHEDULER" "scheduler" "MCF_NAMESPACE" "trainer.namespace" "MCF_POOLS" "pools" "MCF_TOKEN" "service.token.existingSecret" "MCF_DATABASE_URL" "database.existingSecret" "MCF_HOST" "service.port" "MCF_PORT" "service.port" "MCF_WORK_DIR" "nothing" }}
{{- range $name, $_ := .service.settings }}{{ $_ := set $ours (printf "MCF_%s" (snakecase $name | upper)) (printf "service.settings.%s" $name) }}{{ end }}
{{- range .service.env }}
{{- with get $ours .name }}{{ fail (printf "service.env: the chart sets this variable; set %s instead" .) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
