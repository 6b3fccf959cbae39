{{- define "outrider.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* The name of everything that the chart makes. A release called after the chart is not named twice. */ -}}
{{- define "outrider.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "outrider.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "outrider.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "outrider.selectorLabels" -}}
app.kubernetes.io/name: {{ include "outrider.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "outrider.labels" -}}
{{ include "outrider.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "outrider.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "outrider.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* The operator's name in the API server's eyes; the admission policies know it by this. */ -}}
{{- define "outrider.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "outrider.serviceAccountName" . }}
{{- end -}}

{{- define "outrider.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /*
The operator's settings as environment variables. What is not set here is not written, so that the operator's own
default holds, and a key that somebody adds to the ConfigMap by hand survives the next `kubectl apply`.
*/ -}}
{{- define "outrider.settings" -}}
{{- with .Values.registry.host }}
OUTRIDER_REGISTRY: {{ . | quote }}
{{- end }}
{{- with .Values.registry.prefix }}
OUTRIDER_REGISTRY_PREFIX: {{ . | quote }}
{{- end }}
{{- if .Values.registry.plainHTTP }}
OUTRIDER_REGISTRY_PLAIN_HTTP: "true"
{{- end }}
{{- if .Values.registry.caConfigMap }}
OUTRIDER_REGISTRY_CA_FILE: /etc/outrider/registry-ca/ca.crt
{{- end }}
{{- with .Values.registry.nodeHost }}
OUTRIDER_NODE_REGISTRY: {{ . | quote }}
{{- end }}
OUTRIDER_FETCH_IMAGE: {{ .Values.fetchImage | default (include "outrider.image" .) | quote }}
OUTRIDER_FETCH_IMAGE_PULL_POLICY: {{ .Values.image.pullPolicy }}
{{- with .Values.node.dir }}
OUTRIDER_NODE_DIR: {{ . | quote }}
{{- end }}
{{- with .Values.node.registrySecret }}
OUTRIDER_NODE_REGISTRY_SECRET: {{ . | quote }}
{{- end }}
{{- if not (kindIs "invalid" .Values.node.hostRoots) }}
OUTRIDER_HOST_ROOTS: {{ join "," .Values.node.hostRoots | default "none" | quote }}
{{- end }}
{{- with .Values.sources.allowedHosts }}
OUTRIDER_ALLOWED_SOURCE_HOSTS: {{ join "," . | quote }}
{{- end }}
{{- with .Values.sources.allowedAddresses }}
OUTRIDER_ALLOWED_SOURCE_ADDRESSES: {{ join "," . | quote }}
{{- end }}
{{- with .Values.sources.plainHTTPRegistries }}
OUTRIDER_PLAIN_HTTP_SOURCES: {{ join "," . | quote }}
{{- end }}
{{- with .Values.checks.allowedHosts }}
OUTRIDER_ALLOWED_CHECK_HOSTS: {{ join "," . | quote }}
{{- end }}
{{- with .Values.checks.allowedAddresses }}
OUTRIDER_ALLOWED_CHECK_ADDRESSES: {{ join "," . | quote }}
{{- end }}
{{- if ne .Values.sources.maxArtifactBytes nil }}
OUTRIDER_MAX_ARTIFACT_BYTES: {{ .Values.sources.maxArtifactBytes | int64 | quote }}
{{- end }}
{{- if ne .Values.retry.firstSeconds nil }}
OUTRIDER_RETRY_FIRST_SECONDS: {{ .Values.retry.firstSeconds | quote }}
{{- end }}
{{- if ne .Values.retry.factor nil }}
OUTRIDER_RETRY_FACTOR: {{ .Values.retry.factor | quote }}
{{- end }}
{{- if ne .Values.retry.maxSeconds nil }}
OUTRIDER_RETRY_MAX_SECONDS: {{ .Values.retry.maxSeconds | quote }}
{{- end }}
{{- if ne .Values.ingestConcurrency nil }}
OUTRIDER_INGEST_CONCURRENCY: {{ .Values.ingestConcurrency | int64 | quote }}
{{- end }}
{{- if .Values.registry.dockerConfigSecret }}
OUTRIDER_REGISTRY_DOCKER_CONFIG: /etc/outrider/registry-login/.dockerconfigjson
{{- end }}
{{- if .Values.trust.requireBinding }}
OUTRIDER_REQUIRE_BINDING: "true"
{{- end }}
{{- if ne .Values.trust.reverifySeconds nil }}
OUTRIDER_REVERIFY_SECONDS: {{ .Values.trust.reverifySeconds | int64 | quote }}
{{- end }}
{{- if ne .Values.trust.freshSeconds nil }}
OUTRIDER_FRESH_SECONDS: {{ .Values.trust.freshSeconds | int64 | quote }}
{{- end }}
{{- if not .Values.admissionPolicies.enabled }}
OUTRIDER_REQUESTED_BY_UNCHECKED: "true"
{{- end }}
{{- if .Values.allowRSA2048 }}
OUTRIDER_ALLOW_RSA_2048: "true"
{{- end }}
{{- with .Values.log.level }}
OUTRIDER_LOG_LEVEL: {{ . | quote }}
{{- end }}
{{- with .Values.log.format }}
OUTRIDER_LOG_FORMAT: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /*
The conditions of a policy that nobody but the operator passes: its validation is reached by everybody else. Exempt are
the parts of the control plane that clean up (under one name when the controller-manager runs without an account for
each controller).
*/ -}}
{{- define "outrider.onlyTheOperator" -}}
matchConditions:
  - name: is-not-the-operator
    expression: request.userInfo.username != '{{ include "outrider.user" . }}'
  - name: is-not-the-control-plane
    expression: >-
      !(request.userInfo.username in [
        'system:kube-controller-manager',
        'system:serviceaccount:kube-system:namespace-controller',
        'system:serviceaccount:kube-system:generic-garbage-collector',
        'system:serviceaccount:kube-system:daemon-set-controller',
        'system:serviceaccount:kube-system:job-controller',
        'system:serviceaccount:kube-system:ttl-after-finished-controller',
        'system:serviceaccount:kube-system:storage-version-migrator-controller'])
{{- end -}}
