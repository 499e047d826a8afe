{{/* What every pod of ours has in common. */}}

{{/* A value as text. Helm reads every number as a float, and would write large ones as 1e+06. */}}
{{- define "mcf.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* Variables or taints: Kubernetes wants the text of each value, also where it is a number or a boolean. */}}
{{- define "mcf.textValues" -}}
{{- $found := list }}
{{- range . }}
{{- $each := deepCopy . }}
{{- if hasKey $each "value" }}{{ $_ := set $each "value" (include "mcf.text" $each.value) }}{{ end }}
{{- $found = append $found $each }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* (list $ UID) */}}
{{- define "mcf.pod.security" -}}
{{- $uid := include "mcf.text" (index . 1) -}}
runAsNonRoot: true
runAsUser: {{ $uid }}
runAsGroup: {{ $uid }}
fsGroup: {{ $uid }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mcf.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where the pod goes: (list $ .Values.x [SECONDS]), which is how long it waits for a dead node; 300 by default. */}}
{{- define "mcf.pod.placement" -}}
{{- $root := index . 0 }}
{{- $dead := list }}
{{- if gt (len .) 2 }}
{{- $seconds := index . 2 }}
{{- $named := list }}
{{- range (index . 1).tolerations }}{{ $named = append $named (.key | default "") }}{{ end }}
{{- range list "node.kubernetes.io/unreachable" "node.kubernetes.io/not-ready" }}
{{- if not (or (has . $named) (has "" $named)) }}
{{- $dead = append $dead (dict "key" . "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" $seconds) }}
{{- end }}
{{- end }}
{{- end }}
{{- with index . 1 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (.tolerations | default list) $dead }}
tolerations: {{- include "mcf.textValues" . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* How the object store is reached; its keys come from a Secret or from the pod's service account. */}}
{{- define "mcf.store.env" -}}
AWS_REGION: {{ .Values.store.region | quote }}
{{- with .Values.store.endpoint }}
AWS_ENDPOINT_URL: {{ . | quote }}
{{- end }}
{{/* Newer S3 clients send checksums that several S3 servers refuse. */ -}}
AWS_REQUEST_CHECKSUM_CALCULATION: when_required
AWS_RESPONSE_CHECKSUM_VALIDATION: when_required
{{- end }}
