package broker

import (
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
	// Source names the secret source: "local", or a Vault source of the configuration.
	Source string `json:"source"`
	// Key is the secret's path in the source; {variables} of the pattern are filled in.
	Key string `json:"key"`
	// Field is the field of a Vault KV secret; empty means "value".
	Field string `json:"field,omitempty"`
	// Policy is the package under claviger.release that decides.
	Policy string `json:"policy"`
	// CreateBytes, if not zero, makes a random secret of that length where none exists.
	CreateBytes int               `json:"create_bytes,omitempty"`
	TTL         time.Duration     `json:"ttl,omitempty"` // default lifetime of the wrapped secret
	Labels      map[string]string `json:"labels,omitempty"`
}

var (
	pathSegment  = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	pathVariable = regexp.MustCompile(`^\{[a-z][a-z0-9_]*\}$`)
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
	switch {
	case e.Source == "":
		return fmt.Errorf("source: missing")
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
