{{/* Names of everything. Short enough for what Kubernetes appends to them. */}}

{{- define "mcf.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "mcf.fullname" -}}
{{- $name := include "mcf.name" . -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "mcf.service.name" -}}{{ include "mcf.fullname" . }}-service{{- end }}
{{- define "mcf.mlflow.name" -}}{{ include "mcf.fullname" . }}-mlflow{{- end }}
{{- define "mcf.mlflow.serverSecret.ours" -}}{{ include "mcf.fullname" . }}-mlflow-server{{- end }}
{{- define "mcf.postgresql.name" -}}{{ include "mcf.fullname" . }}-postgresql{{- end }}
{{- define "mcf.runs.name" -}}{{ include "mcf.fullname" . }}-runs{{- end }}
{{- define "mcf.uninstall.name" -}}{{ include "mcf.fullname" . }}-uninstall{{- end }}
{{- define "mcf.runs.namespace" -}}{{ default .Release.Namespace .Values.trainer.namespace }}{{- end }}
{{/* Of the whole cluster, where two releases may have one name. */}}
{{- define "mcf.cluster.name" -}}{{ .Release.Namespace }}-{{ include "mcf.fullname" . }}{{- end }}

{{- define "mcf.service.account" -}}
{{- with .Values.service.serviceAccount }}{{ default (.create | ternary (include "mcf.service.name" $) "default") .name }}{{ end }}
{{- end }}
{{- define "mcf.mlflow.account" -}}
{{- with .Values.mlflow.serviceAccount }}{{ default (.create | ternary (include "mcf.mlflow.name" $) "default") .name }}{{ end }}
{{- end }}
{{/* Empty: pods of runs get no account of ours, and no token with it. */}}
{{- define "mcf.runs.account" -}}
{{- with .Values.trainer.serviceAccount }}{{ default (.create | ternary (include "mcf.runs.name" $) "") .name }}{{ end }}
{{- end }}

{{- define "mcf.token.secret" -}}{{ default (include "mcf.service.name" .) .Values.service.token.existingSecret }}{{- end }}
{{- define "mcf.token.key" -}}{{ empty .Values.service.token.existingSecret | ternary "token" .Values.service.token.key }}{{- end }}
{{- define "mcf.database.secret" -}}{{ default (include "mcf.postgresql.name" .) .Values.database.existingSecret }}{{- end }}
{{- define "mcf.database.key" -}}{{ .Values.postgresql.enabled | ternary "url" .Values.database.key }}{{- end }}
{{- define "mcf.mlflow.database.secret" -}}{{ default (include "mcf.postgresql.name" .) .Values.mlflow.database.existingSecret }}{{- end }}
{{- define "mcf.mlflow.database.key" -}}{{ empty .Values.mlflow.database.existingSecret | ternary "mlflow-url" .Values.mlflow.database.key }}{{- end }}
{{- define "mcf.mlflow.serverSecret" -}}{{ default (include "mcf.mlflow.serverSecret.ours" .) .Values.mlflow.auth.existingServerSecret }}{{- end }}
{{/* What the service logs in to MLflow with; empty where it need not. */}}
{{- define "mcf.mlflow.clientSecret" -}}
{{- with .Values.mlflow.auth }}{{ if .existingSecret }}{{ .existingSecret }}{{ else if and $.Values.mlflow.enabled .enabled }}{{ include "mcf.mlflow.name" $ }}{{ end }}{{ end }}
{{- end }}
{{- define "mcf.mlflow.runsSecret.ours" -}}{{ include "mcf.mlflow.name" . }}-runs{{- end }}
{{/* The same for runs, who must not be able to delete what others have logged. */}}
{{- define "mcf.mlflow.runsSecret" -}}
{{- with .Values.mlflow.auth }}{{ if .existingRunsSecret }}{{ .existingRunsSecret }}{{ else if and $.Values.mlflow.enabled .enabled }}{{ include "mcf.mlflow.runsSecret.ours" $ }}{{ else }}{{ .existingSecret }}{{ end }}{{ end }}
{{- end }}
{{- define "mcf.mlflow.url" -}}
{{- .Values.mlflow.enabled | ternary (printf "http://%s.%s:5000" (include "mcf.mlflow.name" .) .Release.Namespace) .Values.mlflow.url }}
{{- end }}

{{/* (list $ .Values.x.image) */}}
{{- define "mcf.image" -}}
{{- $root := index . 0 }}{{ with index . 1 }}
{{- with $root.Values.imageRegistry }}{{ trimSuffix "/" . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ default $root.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* (list $ "component") */}}
{{- define "mcf.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "mcf.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Of pods: nothing that changes with a chart's version, which would restart them. (list $ "component") */}}
{{- define "mcf.podLabels" -}}
{{ include "mcf.selector" . }}
app.kubernetes.io/part-of: mcf
{{- end }}

{{/* (list $ "component") */}}
{{- define "mcf.labels" -}}
{{- $root := index . 0 -}}
{{ include "mcf.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: mcf
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end }}

{{/* What has to outlive the release: see docs/install.md, "How do I remove it?". */}}
{{- define "mcf.keep" -}}
annotations: {helm.sh/resource-policy: keep}
{{- end }}

{{/* (list $ "component" NAME [NAMESPACE]): the metadata of one object */}}
{{- define "mcf.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ if gt (len .) 3 }}{{ index . 3 }}{{ else }}{{ $root.Release.Namespace }}{{ end }}
labels:
  {{- include "mcf.labels" (list $root (index . 1)) | nindent 2 }}
{{- end }}
