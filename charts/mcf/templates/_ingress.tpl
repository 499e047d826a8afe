{{/* (list $ "component" NAME PORT .Values.x.ingress) */}}
{{- define "mcf.ingress" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $name := index . 2 }}{{ $port := index . 3 -}}
{{- with index . 4 -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "mcf.metadata" (list $root $component $name) | nindent 2 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- if .tlsSecret }}
  tls:
    - hosts: [{{ .host | quote }}]
      secretName: {{ .tlsSecret }}
  {{- end }}
  rules:
    - host: {{ .host | quote }}
      http:
        paths:
          - path: {{ .path }}
            pathType: Prefix
            backend: {service: {name: {{ $name }}, port: {name: {{ $port }}}}}
{{- end }}
{{- end }}
