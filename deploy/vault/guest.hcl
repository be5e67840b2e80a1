# What a guest may do itself with a token of kind login. An example.
path "auth/token/lookup-self"  { capabilities = ["read"] }
path "auth/token/renew-self"   { capabilities = ["update"] }
path "cubbyhole/*"             { capabilities = ["create", "update", "read", "delete"] }
