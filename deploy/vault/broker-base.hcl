# The broker's own token, for every kind of secret.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }

# Sessions: a token for each, which owns what is leased to it (kinds database and login).
# Renewing and revoking is by accessor, so that any broker can end any session, and so a
# broker can end any token of this Vault whose accessor it knows. It can list none.
path "auth/token/create/claviger-session" { capabilities = ["update"] }
path "auth/token/renew-accessor"          { capabilities = ["update"] }
path "auth/token/revoke-accessor"         { capabilities = ["update"] }
path "sys/leases/renew"                   { capabilities = ["update"] }
