{{/* What no schema can say: values that have to be given together. Each message says what to set. */}}
{{- define "mcf.checks" -}}
{{- with .Values }}
{{- if not .store.uri }}{{ fail "store.uri: where runs leave checkpoints and results; set it to s3://bucket/prefix" }}{{ end }}
{{- if and .postgresql.enabled .database.existingSecret }}{{ fail "database.existingSecret names a PostgreSQL of your own; with it set postgresql.enabled=false" }}{{ end }}
{{- if not (or .postgresql.enabled .database.existingSecret) }}{{ fail "postgresql.enabled=false needs database.existingSecret: a Secret whose key `url` is postgresql://user:password@host/database" }}{{ end }}
{{- if and .mlflow.enabled (not .postgresql.enabled) (not .mlflow.database.existingSecret) }}{{ fail "MLflow wants a database of its own: set mlflow.database.existingSecret, a Secret whose key `url` is postgresql://user:password@host/mlflow" }}{{ end }}
{{- if and .mlflow.enabled .mlflow.url }}{{ fail "mlflow.url names an MLflow of your own; with it set mlflow.enabled=false" }}{{ end }}
{{- if and .service.ingress.enabled (not .service.ingress.host) }}{{ fail "service.ingress.enabled=true needs service.ingress.host" }}{{ end }}
{{- if and .mlflow.ingress.enabled (not .mlflow.ingress.host) }}{{ fail "mlflow.ingress.enabled=true needs mlflow.ingress.host" }}{{ end }}
{{- range .queues }}
{{- if and (eq .kind "kueue") (not .clusterQueue) }}{{ fail (printf "queues: the Kueue queue %s needs clusterQueue" .name) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
