{{/*
Metadata of what `helm uninstall` makes before it deletes anything, and takes away again.
(list $ NAMESPACE [SUFFIX ["last"]])
*/}}
{{- define "mcf.uninstall.metadata" -}}
{{- $root := index . 0 }}
{{- $suffix := gt (len .) 2 | ternary (index (append . "") 2) "" }}
{{- include "mcf.metadata" (list $root "uninstall" (print (include "mcf.uninstall.name" $root) $suffix) (index . 1)) }}
annotations:
  helm.sh/hook: pre-delete
  helm.sh/hook-weight: {{ gt (len .) 3 | ternary "1" "0" | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
