package policy

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker"
)

// Bounds on what a policy may say: it ends up in the audit log.
const (
	maxReasons    = 32
	maxReasonText = 512
	maxTTL        = 366 * 24 * time.Hour
	maxHolders    = 1 << 20
	maxApprovals  = 16
)

// Rules of reasons that the engine itself gives.
const (
	RuleNoRuleAllowed = "no_rule_allowed" // allow is false or undefined and deny is empty
	RulePolicyError   = "policy_error"    // no decision could be made
	RuleDenied        = "denied"          // a deny entry that names no rule
	RuleMore          = "more"            // further reasons were cut
)

// answers are what a policy's package is asked for.
var answers = []string{"allow", "deny", "obligations", "waived"}

// floorDenials is what every policy denies, unless it waives it.
var floorDenials = ast.MustParseRef(libPackage + ".common.floor_denials")

// waivable are the rules of floor_denials that a policy may name in waived. Whether
// simulated evidence counts is the operator's to say, and evidence that is not
// bound to the request says nothing about who asks.
var waivable = []string{"collateral_expired", "debuggable", "device_collateral_expired", "device_debuggable", "device_migratable", "device_tcb_revoked", "migratable", "tcb_revoked"}

// answer is what a policy package said, and the library: each nil if undefined.
type answer struct {
	allow, deny, obligations, waived, floor ast.Value
}

// apply turns an answer into a decision. Anything unexpected is an error, and
// thereby a denial: allow is exactly true and deny exactly the empty set, and
// so is what the policy does not waive of the floor, or nothing is released.
func (a answer) apply(d *broker.Decision) error {
	allow := false
	if a.allow != nil {
		b, ok := a.allow.(ast.Boolean)
		if !ok {
			return fmt.Errorf("allow is %s, not a boolean", ast.ValueName(a.allow))
		}
		allow = bool(b)
	}
	denied := ast.NewSet()
	if a.deny != nil {
		set, ok := a.deny.(ast.Set)
		if !ok {
			return fmt.Errorf("deny is %s, not a set", ast.ValueName(a.deny))
		}
		denied = set
	}
	floor, ok := a.floor.(ast.Set)
	if !ok {
		return fmt.Errorf("what every policy denies is undefined")
	}
	if floor.Len() > 0 {
		waived, err := waivers(a.waived)
		if err != nil {
			return err
		}
		floor.Foreach(func(t *ast.Term) {
			if !slices.Contains(waived, reason(t.Value).Rule) {
				denied = denied.Union(ast.NewSet(t))
			}
		})
	}
	if denied.Len() > 0 {
		d.Reasons, allow = reasons(denied), false
	}
	if !allow {
		if len(d.Reasons) == 0 {
			d.Reasons = []broker.DecisionReason{{Rule: RuleNoRuleAllowed, Message: "no rule of the policy allows this request"}}
		}
		return nil
	}
	o, err := obligations(a.obligations)
	if err != nil {
		return err
	}
	d.Obligations = o
	d.Allow = true
	return nil
}

// waivers are the rules that waived names; none if it is undefined.
func waivers(v ast.Value) ([]string, error) {
	if v == nil {
		return nil, nil
	}
	set, ok := v.(ast.Set)
	if !ok {
		return nil, fmt.Errorf("waived is %s, not a set", ast.ValueName(v))
	}
	var out []string
	for _, t := range set.Slice() {
		rule, ok := t.Value.(ast.String)
		if !ok || !slices.Contains(waivable, string(rule)) {
			return nil, fmt.Errorf("waived: %s cannot be waived: want one of %s", clip(t.String()), strings.Join(waivable, ", "))
		}
		out = append(out, string(rule))
	}
	return out, nil
}

// reasons converts the deny set, sorted, without duplicates and bounded.
func reasons(set ast.Set) []broker.DecisionReason {
	out := make([]broker.DecisionReason, 0, min(set.Len(), maxReasons+1))
	set.Foreach(func(t *ast.Term) { out = append(out, reason(t.Value)) })
	slices.SortFunc(out, compareReasons)
	out = slices.Compact(out)
	if n := len(out) - maxReasons; n > 0 {
		out = append(out[:maxReasons], broker.DecisionReason{Rule: RuleMore, Message: fmt.Sprintf("%d further reasons", n)})
	}
	return out
}

func reason(v ast.Value) broker.DecisionReason {
	switch x := v.(type) {
	case ast.String:
		return broker.DecisionReason{Rule: RuleDenied, Message: clip(string(x))}
	case ast.Object:
		r := broker.DecisionReason{
			Rule: member(x, "rule"), Message: member(x, "message"), Claim: member(x, "claim"),
			Got: member(x, "got"), Nearest: member(x, "nearest"),
		}
		if r.Rule == "" {
			r.Rule = RuleDenied
		}
		if r.Message == "" {
			r.Message = display(v)
		}
		return r
	default:
		return broker.DecisionReason{Rule: RuleDenied, Message: display(v)}
	}
}

func member(o ast.Object, key string) string {
	t := o.Get(ast.StringTerm(key))
	if t == nil {
		return ""
	}
	return display(t.Value)
}

// display is a string as it is, and anything else as JSON.
func display(v ast.Value) string {
	if s, ok := v.(ast.String); ok {
		return clip(string(s))
	}
	x, err := ast.JSON(v)
	if err != nil {
		return clip(v.String())
	}
	b, err := json.Marshal(x)
	if err != nil {
		return clip(v.String())
	}
	return clip(string(b))
}

// clip bounds s at a character boundary and makes it valid UTF-8.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxReasonText {
		return s
	}
	i := maxReasonText
	for i > 0 && !utf8.RuneStart(s[i]) {
		i--
	}
	return s[:i] + "…"
}

func compareReasons(a, b broker.DecisionReason) int {
	return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Claim, b.Claim), cmp.Compare(a.Message, b.Message),
		cmp.Compare(a.Got, b.Got), cmp.Compare(a.Nearest, b.Nearest))
}

// obligations parses the optional object. An unknown member is an error: a
// misspelt limit must not be a missing one.
func obligations(v ast.Value) (broker.Obligations, error) {
	var o broker.Obligations
	if v == nil {
		return o, nil
	}
	obj, ok := v.(ast.Object)
	if !ok {
		return o, fmt.Errorf("obligations is %s, not an object", ast.ValueName(v))
	}
	err := obj.Iter(func(k, t *ast.Term) error {
		name, ok := k.Value.(ast.String)
		if !ok {
			return errors.New("obligations has a key that is not a string")
		}
		var err error
		switch name {
		case "ttl":
			o.TTL, err = ttl(t.Value)
		case "cache":
			o.Cache, err = ttl(t.Value)
		case "max_holders":
			o.MaxHolders, err = count(t.Value, maxHolders)
		case "approvals":
			o.Approvals, err = count(t.Value, maxApprovals)
		case "require_pq":
			b, ok := t.Value.(ast.Boolean)
			if !ok {
				err = errors.New("not a boolean")
			}
			o.RequirePQ = bool(b)
		default:
			err = errors.New("no such obligation")
		}
		if err != nil {
			return fmt.Errorf("obligations.%s: %w", clip(string(name)), err)
		}
		return nil
	})
	if err != nil {
		return broker.Obligations{}, err
	}
	return o, nil
}

// ttl reads a Go duration ("1h30m") or a whole number of seconds.
func ttl(v ast.Value) (time.Duration, error) {
	var d time.Duration
	switch x := v.(type) {
	case ast.String:
		p, err := time.ParseDuration(string(x))
		if err != nil {
			return 0, errors.New("not a duration")
		}
		d = p
	case ast.Number:
		n, ok := x.Int64()
		if !ok || n < 0 || n > math.MaxInt64/int64(time.Second) {
			return 0, errors.New("not a whole number of seconds")
		}
		d = time.Duration(n) * time.Second
	default:
		return 0, errors.New("neither a duration nor a number of seconds")
	}
	// A time to live of nothing would read as "the catalog's default".
	if d < time.Second || d > maxTTL {
		return 0, fmt.Errorf("not between 1s and %s", maxTTL)
	}
	return d, nil
}

func count(v ast.Value, limit int) (int, error) {
	x, ok := v.(ast.Number)
	if !ok {
		return 0, errors.New("not a number")
	}
	n, ok := x.Int()
	if !ok || n < 0 || n > limit {
		return 0, fmt.Errorf("not a whole number from 0 to %d", limit)
	}
	return n, nil
}
