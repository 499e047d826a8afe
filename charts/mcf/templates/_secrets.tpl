{{/*
A password that is made up once: what the cluster already has is kept, and one rendering sees one value wherever it
asks. (list $ SECRET KEY)
*/}}
{{- define "mcf.generated" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $key := index . 2 }}
{{- $known := get $root.Values "generated" | default dict }}
{{- $slot := printf "%s/%s" $name $key }}
{{- if not (hasKey $known $slot) }}
  {{- $found := (lookup "v1" "Secret" $root.Release.Namespace $name).data | default dict }}
  {{- $_ := set $known $slot (hasKey $found $key | ternary (get $found $key | b64dec) (randAlphaNum 32)) }}
  {{- $_ := set $root.Values "generated" $known }}
{{- end }}
{{- get $known $slot }}
{{- end }}

{{/* What a Secret that is not ours holds now, so that the next upgrade restarts who reads it. (list $ SECRET...) */}}
{{- define "mcf.checksum" -}}
{{- $root := index . 0 }}{{ $seen := list }}
{{- range compact (rest .) }}
  {{- $seen = append $seen (dict "name" . "data" (lookup "v1" "Secret" $root.Release.Namespace .).data) }}
{{- end }}
{{- $seen | toJson | sha256sum }}
{{- end }}
