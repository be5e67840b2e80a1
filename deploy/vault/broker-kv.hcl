# Kinds kv and wrapped. metadata: which version is current, for the watch; no secret is in it.

# Entries with create_bytes: made at first boot, by check-and-set. Also for rotatable entries.
path "secret/data/disks/*"     { capabilities = ["create", "update", "read"] }
path "secret/metadata/disks/*" { capabilities = ["read"] }

# Entries that are only read.
path "secret/data/db/*"     { capabilities = ["read"] }
path "secret/metadata/db/*" { capabilities = ["read"] }
