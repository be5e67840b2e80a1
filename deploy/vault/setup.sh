#!/usr/bin/env bash
# Sets up a Vault (or OpenBao) for Claviger: policies, AppRole, token roles, KV v2 at secret/, and
# what else is named. It can be run again: what is there stays, what differs is brought in line.
#
#   VAULT_ADDR=https://vault.example:8200 VAULT_TOKEN=<an admin's> deploy/vault/setup.sh [database] [pki] [transit]
#
#   SECRET_ID_FILE      where the broker's secret id goes, if there is no such file; default ./vault-secret-id
#   SECRET_ID_TTL       how long new secret ids are good for; default 2160h (90 days), 0: for ever. The broker needs one when it
#                       starts, and when its token could not be renewed: put a new one in the file before the old one ends
#   SECRET_ID_CIDRS     networks that may log in with new secret ids, 10.1.0.0/24,10.2.0.0/24; default: all
#   TOKEN_CIDRS         networks that may use the broker's token; default: all
#                       (What is not given stays as it is in a role that is there already.)
#   database:  POSTGRES=host:port/database, POSTGRES_USER and POSTGRES_PASSWORD of a user that may create roles,
#              POSTGRES_SSLMODE (default verify-full), POSTGRES_STATIC_USER (a user for static role "app-static"; optional)
#   pki:       PKI_DOMAIN, default claviger.internal
#   VAULT       the vault (or bao) binary; default: on PATH, else .cache/bin/vault
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
vault=${VAULT:-$(command -v vault || command -v bao || echo "$here/../../.cache/bin/vault")}
: "${VAULT_ADDR:?}" "${VAULT_TOKEN:?}"
export VAULT_ADDR VAULT_TOKEN
secret_id_file=${SECRET_ID_FILE:-vault-secret-id}
kinds=" $* "

say() { echo "setup: $*" >&2; }
v() { "$vault" "$@" >/dev/null; }
# there COMMAND PATH: whether something is at PATH. What cannot be told ends the script, here and now: to make it
# all the same could put a second root CA beside the first.
there() {
  local said
  if said=$("$vault" "$1" "$2" 2>&1 >/dev/null); then return 0; fi
  case $said in
  "No value found at"* | *"No secret engine mount at"* | *"No auth engine at"*) return 1 ;;
  esac
  say "cannot tell whether $2 is there: $said"
  exit 1
}
has() { there read "$1"; }
want() { [[ $kinds == *" $1 "* ]]; }
policy() { v policy write "claviger-$1" "$here/$1.hcl" && say "policy claviger-$1"; }
engine() { # type, path, options
  has "sys/mounts/$2" && { say "$2/ is there already"; return; }
  v secrets enable -path="$2" "${@:3}" "$1" && say "$1 at $2/"
}
for k in "$@"; do
  case $k in database | pki | transit) ;; *) say "unknown: $k; want database, pki, transit"; exit 2 ;; esac
done
v token lookup || { say "VAULT_TOKEN is not good at $VAULT_ADDR"; exit 1; }

# KV v2. A mount that is version 1 is refused: it has no versions and no check-and-set.
engine kv secret -version=2
[[ $("$vault" read -field=options sys/mounts/secret) == *version:2* ]] || { say "secret/ is not KV v2"; exit 1; }
policies=claviger-broker-base,claviger-broker-kv
policy broker-base
policy broker-kv

# Sessions: orphans, so that they outlive the broker that made them; renewable and without a period,
# so that they end by themselves when no broker renews them.
policy session
policy guest
v write auth/token/roles/claviger-session allowed_policies=claviger-session orphan=true renewable=true token_period=0 \
  token_type=service token_no_default_policy=true
v write auth/token/roles/claviger-login allowed_policies=claviger-guest orphan=false renewable=true token_period=0 \
  token_type=service token_no_default_policy=true
say "token roles claviger-session and claviger-login"

if want database; then
  : "${POSTGRES:?}" "${POSTGRES_USER:?}" "${POSTGRES_PASSWORD:?}"
  engine database database
  has database/config/app || v write database/config/app plugin_name=postgresql-database-plugin allowed_roles='app,app-static' \
    connection_url="postgresql://{{username}}:{{password}}@$POSTGRES?sslmode=${POSTGRES_SSLMODE:-verify-full}" \
    username="$POSTGRES_USER" password=- < <(printf %s "$POSTGRES_PASSWORD") # not an argument, which every user of this machine can read
  # default_ttl is how long a user lives if its session never renews it; max_ttl bounds a session.
  v write database/roles/app db_name=app default_ttl="${DATABASE_TTL:-15m}" max_ttl=24h \
    creation_statements="CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';"
  say "database role app"
  if [[ -n ${POSTGRES_STATIC_USER:-} ]] && ! has database/static-roles/app-static; then
    v write database/static-roles/app-static db_name=app username="$POSTGRES_STATIC_USER" rotation_period=24h
    say "static database role app-static"
  fi
  policy broker-database
  policies+=,claviger-broker-database
fi

if want pki; then
  domain=${PKI_DOMAIN:-claviger.internal}
  engine pki pki -max-lease-ttl=87600h
  there list pki/issuers || v write pki/root/generate/internal common_name="$domain CA" ttl=87600h
  # The names come from the broker's catalog, never from the guest's request.
  v write pki/roles/workload allowed_domains="$domain" allow_bare_domains=true allow_subdomains=true allowed_uri_sans="spiffe://$domain/*" \
    allow_ip_sans=false use_csr_common_name=false use_csr_sans=false require_cn=false key_type=any max_ttl=24h no_store=true
  say "pki role workload for $domain"
  policy broker-pki
  policies+=,claviger-broker-pki
fi

if want transit; then
  engine transit transit
  has transit/keys/app || v write -f transit/keys/app
  has transit/keys/export || v write transit/keys/export exportable=true
  say "transit keys app and export (exportable)"
  policy broker-transit
  policies+=,claviger-broker-transit
fi

has sys/auth/approle || v auth enable approle
# What an earlier run, or somebody else, gave the broker stays.
if has auth/approle/role/claviger; then
  before=$("$vault" read -field=token_policies auth/approle/role/claviger)
  for p in $(tr -d '[],' <<<"$before" | tr ' ' '\n'); do
    [[ ,$policies, == *,$p,* ]] || policies+=,$p
  done
fi
limits=()
[[ -z ${SECRET_ID_TTL:-} ]] || limits+=(secret_id_ttl="$SECRET_ID_TTL")
[[ -n ${SECRET_ID_TTL:-} || ${before+is} ]] || limits+=(secret_id_ttl=2160h)
[[ -z ${SECRET_ID_CIDRS:-} ]] || limits+=(secret_id_bound_cidrs="$SECRET_ID_CIDRS")
[[ -z ${TOKEN_CIDRS:-} ]] || limits+=(token_bound_cidrs="$TOKEN_CIDRS")
# A period: the broker renews its token for as long as it lives.
v write auth/approle/role/claviger token_policies="$policies" token_period=1h token_no_default_policy=true ${limits[@]+"${limits[@]}"}
say "AppRole claviger with $policies"
if [[ ! -s $secret_id_file ]]; then
  (umask 077 && "$vault" write -f -field=secret_id auth/approle/role/claviger/secret-id >"$secret_id_file")
  say "secret id in $secret_id_file, good for $("$vault" read -field=secret_id_ttl auth/approle/role/claviger) seconds (0: for ever); remove the file and run this again for a new one"
fi

cat <<YAML
# claviger.yaml
vault:
  - name: vault
    address: $VAULT_ADDR
    approle:
      role_id: $("$vault" read -field=role_id auth/approle/role/claviger/role-id)
      secret_id_file: $secret_id_file
# Examples; what the policies in deploy/vault allow. "policy" is your Rego package under claviger.release:
# those of \`claviger policy init\` named here ask for {vm}, or for {workload}.
catalog:
  - {pattern: "disks/{vm}", source: vault, key: "disks/{vm}", policy: disks, create_bytes: 32}
  - {pattern: "db/{workload}", source: vault, key: "db/{workload}", policy: workload}
  - {pattern: "wrapped/{workload}", source: vault, kind: wrapped, key: "db/{workload}", policy: workload, options: {wrap_ttl: 2m}}
  - {pattern: "login/{workload}", source: vault, kind: login, key: claviger-login, policy: workload}
YAML
if want database; then
  echo '  - {pattern: "postgres/{workload}/app", source: vault, kind: database, key: app, policy: workload}'
  [[ -z ${POSTGRES_STATIC_USER:-} ]] ||
    echo '  - {pattern: "postgres/{workload}/static", source: vault, kind: database_static, key: app-static, policy: workload, rotatable: true}'
fi
if want pki; then cat <<YAML; fi
  - {pattern: "certificates/{vm}", source: vault, kind: pki, key: workload, policy: disks,
     options: {common_name: "{vm}.$domain", dns_sans: "{vm}.$domain", uri_sans: "spiffe://$domain/{vm}", ttl: 1h}}
YAML
if want transit; then cat <<YAML; fi
  - {pattern: "transit/{workload}/decrypt", source: vault, kind: transit_decrypt, key: app, policy: workload}
  - {pattern: "transit/{workload}/datakey", source: vault, kind: transit_datakey, key: app, policy: workload}
  - {pattern: "transit/{workload}/export", source: vault, kind: transit_export, key: export, policy: workload}
YAML
