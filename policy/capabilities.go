package policy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// capabilities is the language a policy may use: OPA's, less everything whose
// result depends on something other than its arguments. A decision is then a
// function of bundle, reference values and input, and can be replayed by an auditor.
//
// time.now_ns is off as well: a policy reads input.time, which the broker sets
// and records. So are the verifications of certificates and tokens, which look
// at the clock on their own account.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return forbidden(b) })
	c.AllowNet = []string{} // not nil: nil means every host
	return c
}

func forbidden(b *ast.Builtin) bool {
	switch b.Name {
	case "http.send", "net.lookup_ip_addr", "opa.runtime", "rego.parse_module",
		"trace", "rand.intn", "uuid.rfc4122", "time.now_ns", "io.jwt.decode_verify",
		"crypto.x509.parse_and_verify_certificates", "crypto.x509.parse_and_verify_certificates_with_options":
		return true
	}
	// New OPA versions bring new builtins: the property is asked for, not only the name.
	return b.Nondeterministic || strings.HasPrefix(b.Name, "providers.")
}
