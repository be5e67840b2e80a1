# What a broker with deploy/claviger.yaml needs of a KV v2 engine at secret/.
path "secret/data/disks/*" { capabilities = ["create", "update", "read"] } # creates disk keys at first boot, by check-and-set
path "secret/data/db/*"    { capabilities = ["read"] }
