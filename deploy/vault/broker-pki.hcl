# Kind pki. Not sign-verbatim and not issue: the names are the catalog's, the key is the guest's.
path "pki/sign/workload" { capabilities = ["update"] }
