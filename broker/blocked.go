package broker

import (
	"fmt"
	"strings"
)

// ValidPattern says what is wrong with a catalog entry's pattern by itself.
func ValidPattern(pattern string) error {
	for s := range strings.SplitSeq(pattern, "/") {
		if !pathVariable.MatchString(s) && !validSegment(s) {
			return fmt.Errorf("pattern: segment %q is neither [A-Za-z0-9._-]+ nor a {variable}", clip(s))
		}
	}
	return nil
}

// PlanCatalog makes a catalog of the entries of the configuration file and of
// those of the shared state, for as many of the latter as go together. The
// patterns of the others are blocked, as are those given: Lookup finds nothing
// for any path that matches one, lest an entry that is laxer be found in its place.
// It returns why, by pattern, for those of shared. file must be good by itself, and it wins where both have a pattern.
func PlanCatalog(file, shared []CatalogEntry, blocked map[string]error) (*Catalog, map[string]error, error) {
	own := map[string]bool{}
	for _, e := range file {
		own[e.Pattern] = true
	}
	var rest []CatalogEntry
	for _, e := range shared {
		if !own[e.Pattern] {
			rest = append(rest, e)
		}
	}
	bad := map[string]error{}
	good := fitting(file, rest, bad)
	c, err := NewCatalog(good)
	if err != nil {
		return nil, nil, err
	}
	for _, why := range []map[string]error{blocked, bad} {
		for pattern := range why {
			c.blocked = append(c.blocked, strings.Split(pattern, "/"))
		}
	}
	return c, bad, nil
}

// fitting returns base and those of more that make a good catalog with it, first
// come first served; why the others do not goes into bad.
func fitting(base, more []CatalogEntry, bad map[string]error) []CatalogEntry {
	all := append(base[:len(base):len(base)], more...)
	_, err := NewCatalog(all)
	switch {
	case err == nil:
		return all
	case len(more) == 0:
		return base
	case len(more) == 1:
		bad[more[0].Pattern] = err
		return base
	}
	half := len(more) / 2
	return fitting(fitting(base, more[:half], bad), more[half:], bad)
}

// Blocked says whether a path matches a pattern whose entry cannot be used. Nobody
// knows what such a path leads to, which is not the guest's fault.
func (c *Catalog) Blocked(path string) bool { return c != nil && c.isBlocked(strings.Split(path, "/")) }

func (c *Catalog) isBlocked(segs []string) bool {
	for _, p := range c.blocked {
		if len(p) == len(segs) && fixed(p, variables(p)) == fixed(segs, variables(p)) {
			return true
		}
	}
	return false
}
