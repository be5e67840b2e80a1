# Kinds transit_decrypt and transit_datakey. Not "create" on datakey: Vault would make a missing key.
path "transit/decrypt/app"           { capabilities = ["update"] }
path "transit/datakey/plaintext/app" { capabilities = ["update"] }

# Kind transit_export: the guest's public key is imported for a moment under a name of its own,
# and the newest version of an exportable key is wrapped to it, inside Vault.
path "transit/keys/claviger-byok-*" { capabilities = ["create", "update", "delete"] }
path "transit/byok-export/+/export" { capabilities = ["read"] }
