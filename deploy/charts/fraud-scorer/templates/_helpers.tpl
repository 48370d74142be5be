{{- define "fraud-scorer.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "fraud-scorer.selector" -}}
app.kubernetes.io/name: fraud-scorer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fraud-scorer.labels" -}}
{{ include "fraud-scorer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "fraud-scorer.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "fraud-scorer.pod" -}}
automountServiceAccountToken: false
# Variables of services, such as FRAUD_SCORER_..._PORT, would be read as settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.container" -}}
image: {{ include "fraud-scorer.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Settings from a dict: name and value; lists and mappings as JSON. */}}
{{- define "fraud-scorer.settings" -}}
{{- range $name, $value := . }}
- name: FRAUD_SCORER_{{ $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end -}}

{{/* Kafka for one program: its own login, certificates and settings of security in the place of those in `kafka`, as
JSON. From (list . .Values.PROGRAM.kafka). */}}
{{- define "fraud-scorer.kafka" -}}
{{- $root := index . 0 -}}
{{- $kafka := mergeOverwrite (deepCopy $root.Values.kafka) (deepCopy (index . 1)) -}}
{{- $_ := required "kafka.bootstrapServers: host:port, comma separated" $kafka.bootstrapServers -}}
{{- $keys := list $kafka.secret.saslPassword $kafka.secret.sslKeyPassword $kafka.secret.oauthClientSecret | compact -}}
{{- if and $keys (not $kafka.secret.name) }}
{{- fail "kafka.secret.name: a key is given, and no Secret that has it" }}
{{- end }}
{{- if and $kafka.secret.name (not $keys) }}
{{- fail "kafka.secret: which of its keys is saslPassword, sslKeyPassword or oauthClientSecret?" }}
{{- end }}
{{- if $root.Values.networkPolicy.enabled }}
{{- range splitList "," $kafka.bootstrapServers }}
{{- with regexFind ":[0-9]+$" (trim .) | trimPrefix ":" }}
{{- if not (has . (toStrings $root.Values.networkPolicy.kafka.ports)) }}
{{- fail (printf "networkPolicy.kafka.ports lets no program reach port %s of kafka.bootstrapServers" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $kafka -}}
{{- end -}}

{{/* The file of a Secret's key; both have to be given. From (list WHERE FOLDER SECRET). */}}
{{- define "fraud-scorer.file" -}}
{{- $where := index . 0 -}}
{{- $secret := index . 2 -}}
{{- $_ := required (printf "%s.name: which Secret?" $where) $secret.name -}}
/run/secrets/{{ index . 1 }}/{{ required (printf "%s.key: which key of Secret %s?" $where $secret.name) $secret.key }}
{{- end -}}

{{/* What every program needs, from what fraud-scorer.kafka made. */}}
{{- define "fraud-scorer.common" -}}
{{- $secrets := list "sasl.password" "ssl.key.password" "ssl.keystore.password" "ssl.key.pem" "sasl.oauthbearer.client.secret" -}}
{{- range $secrets }}
{{- if hasKey $.security . }}
{{- fail (printf "kafka.security.%s is a secret: name a Secret in kafka.secret or kafka.tlsSecret" .) }}
{{- end }}
{{- end }}
- name: FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS
  value: {{ .bootstrapServers | quote }}
{{- with .topicPrefix }}
- name: FRAUD_SCORER_KAFKA__TOPIC_PREFIX
  value: {{ . | quote }}
{{- end }}
{{- with .security }}
- name: FRAUD_SCORER_KAFKA__SECURITY
  value: {{ toJson . | quote }}
{{- end }}
{{- with .secret }}
{{- if .saslPassword }}
- name: FRAUD_SCORER_KAFKA__SASL_PASSWORD_FILE
  value: /run/secrets/kafka/{{ .saslPassword }}
{{- end }}
{{- if .sslKeyPassword }}
- name: FRAUD_SCORER_KAFKA__SSL_KEY_PASSWORD_FILE
  value: /run/secrets/kafka/{{ .sslKeyPassword }}
{{- end }}
{{- if .oauthClientSecret }}
- name: FRAUD_SCORER_KAFKA__OAUTH_CLIENT_SECRET_FILE
  value: /run/secrets/kafka/{{ .oauthClientSecret }}
{{- end }}
{{- end }}
# An emptyDir has no sticky bit, so compiled kernels would not be taken from one at /tmp (deploy/KERNEL_CACHE.md); the
# container's own /dev/shm has it, and holds links and fetched bundles alone.
- name: TMPDIR
  value: /dev/shm
{{- end -}}

{{/* The URL of snapshots that all workers share; empty: each keeps its own. */}}
{{- define "fraud-scorer.snapshots" -}}
{{- if .Values.snapshots.url -}}
{{- if .Values.snapshots.volume -}}
{{- fail "snapshots.url and snapshots.volume: give one of the two" -}}
{{- end -}}
{{- .Values.snapshots.url -}}
{{- else if .Values.snapshots.volume -}}
file:///var/lib/fraud-scorer/snapshots
{{- end -}}
{{- end -}}

{{- define "fraud-scorer.http" -}}
- name: FRAUD_SCORER_HTTP__HOST
  value: {{ .Values.http.host | quote }}
{{- if .Values.http.tlsSecret }}
- name: FRAUD_SCORER_HTTP__CERTIFICATE
  value: /run/secrets/http-tls/tls.crt
- name: FRAUD_SCORER_HTTP__KEY
  value: /run/secrets/http-tls/tls.key
{{- end }}
{{- if .Values.http.user }}
- name: FRAUD_SCORER_HTTP__USER
  value: {{ .Values.http.user | quote }}
- name: FRAUD_SCORER_HTTP__PASSWORD_FILE
  value: {{ include "fraud-scorer.file" (list "http.passwordSecret" "http" .Values.http.passwordSecret) }}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.http-mounts" -}}
{{- if .Values.http.tlsSecret }}
- {name: http-tls, mountPath: /run/secrets/http-tls, readOnly: true}
{{- end }}
{{- if .Values.http.user }}
- {name: http, mountPath: /run/secrets/http, readOnly: true}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.http-volumes" -}}
{{- if .Values.http.tlsSecret }}
- {name: http-tls, secret: {secretName: {{ .Values.http.tlsSecret | quote }}, defaultMode: 288}}
{{- end }}
{{- if .Values.http.user }}
- {name: http, secret: {secretName: {{ .Values.http.passwordSecret.name | quote }}, defaultMode: 288}}
{{- end }}
{{- end -}}

{{/* Traces, where they are on. */}}
{{- define "fraud-scorer.tracing" -}}
{{- with .Values.tracing }}
{{- if .enabled }}
- name: FRAUD_SCORER_TRACING__EXPORTER
  value: otlp
- name: FRAUD_SCORER_TRACING__ENDPOINT
  value: {{ required "tracing.endpoint: the collector's address for traces, https://HOST:4318/v1/traces" .endpoint | quote }}
- name: FRAUD_SCORER_TRACING__RATIO
  value: {{ .ratio | quote }}
{{- if or .secret.name .secret.key }}
- name: FRAUD_SCORER_TRACING__HEADERS_FILE
  value: {{ include "fraud-scorer.file" (list "tracing.secret" "tracing" .secret) }}
{{- end }}
{{- if .tlsSecret }}
- name: FRAUD_SCORER_TRACING__CERTIFICATE
  value: /run/secrets/tracing-tls/ca.crt
{{- if .clientCertificate }}
- name: FRAUD_SCORER_TRACING__CLIENT_CERTIFICATE
  value: /run/secrets/tracing-tls/tls.crt
- name: FRAUD_SCORER_TRACING__CLIENT_KEY
  value: /run/secrets/tracing-tls/tls.key
{{- end }}
{{- else if .clientCertificate }}
{{- fail "tracing.tlsSecret: which Secret has the client's certificate?" }}
{{- end }}
{{- else if .endpoint }}
{{- fail "tracing.endpoint is given, and tracing.enabled is false: no span would be sent" }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.tracing-mounts" -}}
{{- if and .Values.tracing.enabled .Values.tracing.secret.name }}
- {name: tracing, mountPath: /run/secrets/tracing, readOnly: true}
{{- end }}
{{- if and .Values.tracing.enabled .Values.tracing.tlsSecret }}
- {name: tracing-tls, mountPath: /run/secrets/tracing-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.tracing-volumes" -}}
{{- if and .Values.tracing.enabled .Values.tracing.secret.name }}
- {name: tracing, secret: {secretName: {{ .Values.tracing.secret.name | quote }}, defaultMode: 288}}
{{- end }}
{{- if and .Values.tracing.enabled .Values.tracing.tlsSecret }}
- {name: tracing-tls, secret: {secretName: {{ .Values.tracing.tlsSecret | quote }}, defaultMode: 288}}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.kafka-mounts" -}}
{{- if .secret.name }}
- {name: kafka, mountPath: /run/secrets/kafka, readOnly: true}
{{- end }}
{{- if .tlsSecret }}
- {name: kafka-tls, mountPath: /run/secrets/kafka-tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* Mode 288 is 0440: the user's group (fsGroup) reads. */}}
{{- define "fraud-scorer.kafka-volumes" -}}
{{- if .secret.name }}
- {name: kafka, secret: {secretName: {{ .secret.name | quote }}, defaultMode: 288}}
{{- end }}
{{- if .tlsSecret }}
- {name: kafka-tls, secret: {secretName: {{ .tlsSecret | quote }}, defaultMode: 288}}
{{- end }}
{{- end -}}

{{/* Postgres for a dict of url, secret and tlsSecret. */}}
{{- define "fraud-scorer.postgres" -}}
- name: FRAUD_SCORER_POSTGRES__URL
  value: {{ required "postgres.url: postgresql://USER@HOST/DATABASE" .url | quote }}
{{- if regexMatch "^[a-z]+://[^/@]*:[^/@]*@" .url }}
{{- fail "postgres.url holds a password: name a Secret in postgres.secret" }}
{{- end }}
{{- if .secret.name }}
- name: FRAUD_SCORER_POSTGRES__PASSWORD_FILE
  value: {{ include "fraud-scorer.file" (list "postgres.secret" "postgres" .secret) }}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.postgres-mounts" -}}
{{- if .secret.name }}
- {name: postgres, mountPath: /run/secrets/postgres, readOnly: true}
{{- end }}
{{- if .tlsSecret }}
- {name: postgres-tls, mountPath: /run/secrets/postgres-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.postgres-volumes" -}}
{{- if .secret.name }}
- {name: postgres, secret: {secretName: {{ .secret.name | quote }}, defaultMode: 288}}
{{- end }}
{{- if .tlsSecret }}
- {name: postgres-tls, secret: {secretName: {{ .tlsSecret | quote }}, defaultMode: 288}}
{{- end }}
{{- end -}}

{{/* Probes; a start connects to Kafka before the port opens. */}}
{{- define "fraud-scorer.probes" -}}
{{- $scheme := .Values.http.tlsSecret | empty | ternary "HTTP" "HTTPS" -}}
startupProbe:
  httpGet: {path: /livez, port: metrics, scheme: {{ $scheme }}}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /livez, port: metrics, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{- define "fraud-scorer.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fraud-scorer.egress-kafka" -}}
- ports:  # names
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
- ports:
    {{- range .Values.networkPolicy.kafka.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .Values.networkPolicy.kafka.to }}
  to: {{ toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "fraud-scorer.egress-postgres" -}}
- ports:
    {{- range .Values.networkPolicy.postgres.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .Values.networkPolicy.postgres.to }}
  to: {{ toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
