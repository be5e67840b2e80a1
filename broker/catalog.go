package broker

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// CatalogEntry maps resource paths to a secret and the policy that guards it.
type CatalogEntry struct {
	// Pattern is a path whose whole segments may be variables: "disks/{vm}".
	Pattern string `json:"pattern"`
	// Source names the secret source: "local", "token", or a Vault source of the configuration.
	Source string `json:"source"`
	// Kind is what to get from the source. Empty means KindKV.
	Kind Kind `json:"kind,omitempty"`
	// Mount is the path of the engine in Vault; empty means the usual one of the kind ("secret", "database", "pki", "transit").
	Mount string `json:"mount,omitempty"`
	// Key is the secret's path in the source, or the name of its role or key there; {variables} of the pattern are filled in.
	Key string `json:"key"`
	// Field is the field of a Vault KV secret; empty means "value", "*" the whole secret as JSON.
	Field string `json:"field,omitempty"`
	// PinVersion, if not zero, is the only version of a KV secret that is given out.
	PinVersion int `json:"pin_version,omitempty"`
	// Options are the kind's own settings; {variables} are filled in. Validate knows their names.
	Options map[string]string `json:"options,omitempty"`
	// Policy is the package under claviger.release that decides.
	Policy string `json:"policy"`
	// CreateBytes, if not zero, makes a random secret of that length where none exists.
	CreateBytes int           `json:"create_bytes,omitempty"`
	TTL         time.Duration `json:"ttl,omitempty"` // default lifetime of the wrapped secret
	// Grace is how long the version before the newest may still be used after a rotation.
	Grace time.Duration `json:"grace,omitempty"`
	// Rotatable lets an operator have the source make a new random value. A disk
	// key is not: its disk would not open any more.
	Rotatable bool `json:"rotatable,omitempty"`
	// Rekey lets the workload name the version that it wants, and have the next
	// one made (VersionInput): for disk keys, as a disk opens with one version until it was re-keyed.
	Rekey bool `json:"rekey,omitempty"`
	// Priority is PriorityBoot for what machines cannot boot without: it goes before everything else in the queue.
	Priority string            `json:"priority,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// PriorityBoot is the priority of disk keys.
const PriorityBoot = "boot"

// Kind is a kind of secret.
type Kind string

// Kinds. All but KindEAR are of Vault; "local" has KindKV only.
const (
	KindKV             Kind = "kv"              // Key: path of a KV v2 secret
	KindDatabase       Kind = "database"        // Key: a dynamic role; leased. JSON {"username", "password"}
	KindDatabaseStatic Kind = "database_static" // Key: a static role. JSON {"username", "password"}
	KindPKI            Kind = "pki"             // Key: a role; Input: the guest's CSR. PEM chain. Options: common_name, uri_sans, dns_sans, ttl
	KindTransitDecrypt Kind = "transit_decrypt" // Key: a transit key; Input: the ciphertext
	KindTransitDatakey Kind = "transit_datakey" // Key: a transit key. JSON {"plaintext" (base64), "ciphertext"}. Options: bits
	KindTransitExport  Kind = "transit_export"  // Key: an exportable transit key, wrapped inside Vault to the guest's RSA key: the broker never sees it
	KindWrapped        Kind = "wrapped"         // Key: path of a KV v2 secret; a response-wrapping token for it. Options: wrap_ttl
	KindLogin          Kind = "login"           // Key: a token role; leased. JSON {"token", "accessor", "ttl"}
	KindEAR            Kind = "ear"             // source "token"; Key: the audience. An EAT attestation result. Options: dialect
)

// Leased says whether secrets of this kind belong to an Owner.
func (k Kind) Leased() bool { return k == KindDatabase || k == KindLogin }

// Watched says whether a new version can appear that running guests should get.
func (k Kind) Watched() bool { return k == "" || k == KindKV || k == KindDatabaseStatic }

// options are the settings that each kind knows.
var options = map[Kind][]string{
	KindKV: nil, KindDatabase: nil, KindDatabaseStatic: nil,
	KindPKI:            {"common_name", "uri_sans", "dns_sans", "ttl"},
	KindTransitDecrypt: {"context"}, KindTransitDatakey: {"bits"}, KindTransitExport: nil,
	KindWrapped: {"wrap_ttl"}, KindLogin: nil, KindEAR: {"dialect"},
}

var (
	pathSegment  = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	pathVariable = regexp.MustCompile(`^\{[a-z][a-z0-9_]*\}$`)
	anyVariable  = regexp.MustCompile(`\{[^}]*\}`)
	policyName   = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

// Validate names the field that is wrong.
func (e CatalogEntry) Validate() error {
	vars := map[string]bool{}
	for s := range strings.SplitSeq(e.Pattern, "/") {
		if pathVariable.MatchString(s) {
			if vars[s] {
				return fmt.Errorf("pattern: variable %s appears twice", s)
			}
			vars[s] = true
		} else if !validSegment(s) {
			return fmt.Errorf("pattern: segment %q is neither [A-Za-z0-9._-]+ nor a {variable}", s)
		}
	}
	for s := range strings.SplitSeq(e.Key, "/") {
		if strings.Contains(s, "{") {
			if !vars[s] {
				return fmt.Errorf("key: segment %q is not a variable of the pattern", s)
			}
		} else if !validSegment(s) {
			return fmt.Errorf("key: segment %q is neither [A-Za-z0-9._-]+ nor a {variable}", s)
		}
	}
	kind := cmp.Or(e.Kind, KindKV)
	known, ok := options[kind]
	if !ok {
		return fmt.Errorf("kind: %q is not known", e.Kind)
	}
	for name, value := range e.Options {
		if !slices.Contains(known, name) {
			return fmt.Errorf("options: kind %s has no option %q", kind, name)
		}
		for _, v := range anyVariable.FindAllString(value, -1) {
			if !vars[v] {
				return fmt.Errorf("options: %s: %s is not a variable of the pattern", name, v)
			}
		}
	}
	for s := range strings.SplitSeq(e.Mount, "/") {
		if e.Mount != "" && !validSegment(s) {
			return fmt.Errorf("mount: segment %q is not [A-Za-z0-9._-]+", s)
		}
	}
	switch {
	case e.Source == "":
		return fmt.Errorf("source: missing")
	case e.Source == "local" && kind != KindKV:
		return fmt.Errorf("kind: the embedded store has no %s", kind)
	case (e.Source == "token") != (kind == KindEAR):
		return fmt.Errorf("kind: ear goes with source token, and only with it")
	case kind != KindKV && (e.CreateBytes != 0 || e.Field != "" || e.PinVersion != 0):
		return fmt.Errorf("create_bytes, field, pin_version: kind %s has none", kind)
	case e.PinVersion < 0 || e.PinVersion > 0 && e.CreateBytes > 0:
		return fmt.Errorf("pin_version: want a version that exists, without create_bytes")
	case e.Rotatable && kind != KindDatabaseStatic && (kind != KindKV || e.CreateBytes == 0):
		return fmt.Errorf("rotatable: only for kv with create_bytes, and database_static")
	case e.Rekey && e.Rotatable:
		return fmt.Errorf("rekey, rotatable: not both: a rotation by an operator would replace the version that the disk opens with")
	case e.Rekey && (kind != KindKV || e.CreateBytes == 0 || e.Field == "*"):
		return fmt.Errorf("rekey: only for kv with create_bytes, and one field")
	case e.Priority != "" && e.Priority != PriorityBoot:
		return fmt.Errorf("priority: %q is neither boot nor empty", e.Priority)
	case e.Grace < 0:
		return fmt.Errorf("grace: negative")
	case !policyName.MatchString(e.Policy):
		return fmt.Errorf("policy: %q is not a package name under claviger.release", e.Policy)
	case e.CreateBytes < 0 || e.CreateBytes > 1024:
		return fmt.Errorf("create_bytes: %d is outside 0 to 1024", e.CreateBytes)
	case e.CreateBytes > 0 && e.CreateBytes < 16:
		return fmt.Errorf("create_bytes: %d is too short for a key, want 16 to 1024", e.CreateBytes)
	case e.TTL < 0:
		return fmt.Errorf("ttl: negative")
	}
	return nil
}

// A path element of "." or ".." must never reach a source.
func validSegment(s string) bool { return pathSegment.MatchString(s) && s != "." && s != ".." }

// Catalog finds the entry for a path. It is immutable; the zero value knows nothing.
type Catalog struct{ entries []CatalogEntry }

// NewCatalog checks the entries. Fixed segments win over variables, so the order does not matter.
func NewCatalog(entries []CatalogEntry) (*Catalog, error) {
	seen := map[string]string{}
	for _, e := range entries {
		if err := e.Validate(); err != nil {
			return nil, fmt.Errorf("catalog entry %q: %w", e.Pattern, err)
		}
		shape := regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(e.Pattern, "{}")
		if other, dup := seen[shape]; dup {
			return nil, fmt.Errorf("catalog entry %q: matches the same paths as %q", e.Pattern, other)
		}
		seen[shape] = e.Pattern
	}
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b CatalogEntry) int {
		// '{' sorts after every letter and digit: fixed segments come first.
		return strings.Compare(a.Pattern, b.Pattern)
	})
	return &Catalog{sorted}, nil
}

// Entries lists the catalog.
func (c *Catalog) Entries() []CatalogEntry {
	if c == nil {
		return nil
	}
	return slices.Clone(c.entries)
}

// Lookup returns the entry with its key filled in, and the variables' values.
func (c *Catalog) Lookup(path string) (CatalogEntry, map[string]string, bool) {
	if c == nil {
		return CatalogEntry{}, nil, false
	}
	segs := strings.Split(path, "/")
	for _, s := range segs {
		if !validSegment(s) {
			return CatalogEntry{}, nil, false
		}
	}
	for _, e := range c.entries {
		if params, ok := match(strings.Split(e.Pattern, "/"), segs); ok {
			e.Key = fill(e.Key, params)
			e.Options = fillOptions(e.Options, params)
			return e, params, true
		}
	}
	return CatalogEntry{}, nil, false
}

func match(pattern, segs []string) (map[string]string, bool) {
	if len(pattern) != len(segs) {
		return nil, false
	}
	params := map[string]string{}
	for i, p := range pattern {
		if strings.HasPrefix(p, "{") {
			params[p[1:len(p)-1]] = segs[i]
		} else if p != segs[i] {
			return nil, false
		}
	}
	return params, true
}

func fill(key string, params map[string]string) string {
	segs := strings.Split(key, "/")
	for i, s := range segs {
		if strings.HasPrefix(s, "{") {
			segs[i] = params[s[1:len(s)-1]]
		}
	}
	return strings.Join(segs, "/")
}

func fillOptions(options, params map[string]string) map[string]string {
	if len(options) == 0 {
		return nil
	}
	out := make(map[string]string, len(options))
	for name, value := range options {
		out[name] = anyVariable.ReplaceAllStringFunc(value, func(v string) string { return params[v[1:len(v)-1]] })
	}
	return out
}
