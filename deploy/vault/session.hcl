# The token of a session. The broker makes it from token role claviger-session, holds it, and
# leases what follows with it: when it ends, Vault ends the leases.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
path "sys/leases/renew"       { capabilities = ["update"] }

# Kind database: dynamic roles.
path "database/creds/app" { capabilities = ["read"] }

# Kind login: token roles with orphan=false.
path "auth/token/create/claviger-login" { capabilities = ["update"] }
