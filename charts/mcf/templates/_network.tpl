{{/* Who may open the page and ask the API: everybody where nobody is named, for both ask for a password. */}}
{{- define "mcf.clients" -}}
{{- with .Values.networkPolicy.clients }}
from:
  {{- toYaml . | nindent 2 }}
  - podSelector: {matchLabels: {app.kubernetes.io/instance: {{ $.Release.Name }}, app.kubernetes.io/part-of: mcf}}
{{- end }}
{{- end }}

{{/* Names, our own pods, and the listed ports of everybody else; anything where no port is listed. (list $ [PEER...]) */}}
{{- define "mcf.egress" -}}
{{- $root := index . 0 }}
{{- with $root.Values.networkPolicy.egressPorts -}}
egress:
  - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
  - to:
      - podSelector: {matchLabels: {app.kubernetes.io/instance: {{ $root.Release.Name }}, app.kubernetes.io/part-of: mcf}}
      {{- if ne (include "mcf.runs.namespace" $root) $root.Release.Namespace }}
        namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ $root.Release.Namespace }}}}
      {{- end }}
      {{- range rest $ }}
      - {{ toYaml . | nindent 8 | trim }}
      {{- end }}
  - ports:
      {{- range . }}
      - {port: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}

{{/* What an attempt is to Kubernetes. */}}
{{- define "mcf.runs.group" -}}{{ eq .Values.scheduler "volcano" | ternary "batch.volcano.sh" "jobset.x-k8s.io" }}{{- end }}
{{- define "mcf.runs.version" -}}{{ eq .Values.scheduler "volcano" | ternary "v1alpha1" "v1alpha2" }}{{- end }}
{{- define "mcf.runs.plural" -}}{{ eq .Values.scheduler "volcano" | ternary "jobs" "jobsets" }}{{- end }}
