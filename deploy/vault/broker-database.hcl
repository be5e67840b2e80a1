# Kind database_static. (Kind database is the session's: session.hcl.)
path "database/static-creds/*" { capabilities = ["read"] }
path "database/static-roles/*" { capabilities = ["read"] } # when it was rotated last; no password is in it
path "database/rotate-role/*"  { capabilities = ["update"] } # only for rotatable entries
