package broker

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestCatalogLookup(t *testing.T) {
	c, err := NewCatalog([]CatalogEntry{
		{Pattern: "disks/{vm}", Source: "local", Key: "fleet/{vm}/disk", Policy: "disks"},
		{Pattern: "disks/golden", Source: "vault", Key: "golden", Policy: "strict"},
		{Pattern: "{team}/{app}/token", Source: "vault", Key: "{app}/{team}", Policy: "workload"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, key, policy string
		params            map[string]string
	}{
		{"disks/vm-1", "fleet/vm-1/disk", "disks", map[string]string{"vm": "vm-1"}},
		{"disks/golden", "golden", "strict", map[string]string{}}, // fixed wins over variable
		{"a/b/token", "b/a", "workload", map[string]string{"team": "a", "app": "b"}},
	} {
		e, params, ok := c.Lookup(tt.path)
		if !ok || e.Key != tt.key || e.Policy != tt.policy {
			t.Errorf("%s: got %+v, %v", tt.path, e, ok)
		}
		if d := cmp.Diff(tt.params, params); d != "" {
			t.Errorf("%s: %s", tt.path, d)
		}
	}
	for _, path := range []string{"", "disks", "disks/", "disks/a/b", "/disks/a", "disks/..", "disks/.", "disks/a b", "disks/{vm}", "disks//", "other"} {
		if e, _, ok := c.Lookup(path); ok {
			t.Errorf("%q matched %q", path, e.Pattern)
		}
	}
	if _, _, ok := (*Catalog)(nil).Lookup("disks/a"); ok {
		t.Error("the nil catalog knows something")
	}
}

func TestNewCatalogRefuses(t *testing.T) {
	good := CatalogEntry{Pattern: "a/{x}", Source: "local", Key: "a/{x}", Policy: "p"}
	for field, change := range map[string]func(*CatalogEntry){
		"pattern: segment":  func(e *CatalogEntry) { e.Pattern = "a/b c" },
		"pattern: variable": func(e *CatalogEntry) { e.Pattern = "{x}/{x}" },
		"key: segment":      func(e *CatalogEntry) { e.Key = "../{x}" },
		"not a variable":    func(e *CatalogEntry) { e.Key = "{y}" },
		"source":            func(e *CatalogEntry) { e.Source = "" },
		"policy":            func(e *CatalogEntry) { e.Policy = "a.b" },
		"create_bytes":      func(e *CatalogEntry) { e.CreateBytes = 4 },
		"rekey, rotatable":  func(e *CatalogEntry) { e.CreateBytes, e.Rekey, e.Rotatable = 32, true, true },
		"rekey":             func(e *CatalogEntry) { e.Rekey = true },
		"priority":          func(e *CatalogEntry) { e.Priority = "first" },
		"ttl":               func(e *CatalogEntry) { e.TTL = -time.Second },
	} {
		e := good
		change(&e)
		if _, err := NewCatalog([]CatalogEntry{e}); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := NewCatalog([]CatalogEntry{good}); err != nil {
		t.Error(err)
	}
	twin := good
	twin.Pattern, twin.Key = "a/{y}", "a/{y}"
	if _, err := NewCatalog([]CatalogEntry{good, twin}); err == nil {
		t.Error("accepted two entries for the same paths")
	}
}

// TestValidate: which settings go together, and how far each goes.
func TestValidate(t *testing.T) {
	vault := func(k Kind, change func(*CatalogEntry)) CatalogEntry {
		e := CatalogEntry{Pattern: "a/{x}", Source: "vault", Kind: k, Key: "k/{x}", Policy: "p"}
		if change != nil {
			change(&e)
		}
		return e
	}
	option := func(name, value string) func(*CatalogEntry) {
		return func(e *CatalogEntry) { e.Options = map[string]string{name: value} }
	}
	for name, tt := range map[string]struct {
		e    CatalogEntry
		want string // of what is wrong; empty: nothing
	}{
		"kv":                         {vault("", nil), ""},
		"kv by name":                 {vault(KindKV, nil), ""},
		"database":                   {vault(KindDatabase, nil), ""},
		"static database":            {vault(KindDatabaseStatic, func(e *CatalogEntry) { e.Rotatable = true }), ""},
		"pki":                        {vault(KindPKI, option("common_name", "{x}.example")), ""},
		"pki names":                  {vault(KindPKI, option("uri_sans", "spiffe://x")), ""},
		"pki more names":             {vault(KindPKI, option("dns_sans", "x")), ""},
		"pki time":                   {vault(KindPKI, option("ttl", "1h")), ""},
		"decrypt":                    {vault(KindTransitDecrypt, option("context", "{x}")), ""},
		"data key":                   {vault(KindTransitDatakey, option("bits", "256")), ""},
		"export":                     {vault(KindTransitExport, nil), ""},
		"wrapped":                    {vault(KindWrapped, option("wrap_ttl", "1m")), ""},
		"login":                      {vault(KindLogin, nil), ""},
		"token":                      {vault(KindEAR, func(e *CatalogEntry) { e.Source = "token" }), ""},
		"token's dialect":            {vault(KindEAR, func(e *CatalogEntry) { e.Source, e.Options = "token", map[string]string{"dialect": "x"} }), ""},
		"kind of nothing":            {vault("none", nil), "kind"},
		"option of nothing":          {vault(KindDatabase, option("ttl", "1h")), "options"},
		"option of another variable": {vault(KindPKI, option("common_name", "{y}")), "options"},
		"token from vault":           {vault(KindEAR, nil), "ear goes with source token"},
		"secret from token":          {vault(KindPKI, func(e *CatalogEntry) { e.Source = "token" }), "ear goes with source token"},
		"database in the store":      {vault(KindDatabase, func(e *CatalogEntry) { e.Source = "local" }), "the embedded store has no database"},
		"mount":                      {vault("", func(e *CatalogEntry) { e.Mount = "teams/kv" }), ""},
		"mount upwards":              {vault("", func(e *CatalogEntry) { e.Mount = "teams/.." }), "mount"},
		"mount at the root":          {vault("", func(e *CatalogEntry) { e.Mount = "/kv" }), "mount"},
		"created database":           {vault(KindDatabase, func(e *CatalogEntry) { e.CreateBytes = 32 }), "create_bytes, field"},
		"field of a database":        {vault(KindDatabase, func(e *CatalogEntry) { e.Field = "x" }), "create_bytes, field"},
		"pinned database":            {vault(KindDatabase, func(e *CatalogEntry) { e.PinVersion = 1 }), "create_bytes, field"},
		"pinned":                     {vault("", func(e *CatalogEntry) { e.PinVersion = 1 }), ""},
		"pinned before the first":    {vault("", func(e *CatalogEntry) { e.PinVersion = -1 }), "pin_version"},
		"pinned and created":         {vault("", func(e *CatalogEntry) { e.PinVersion, e.CreateBytes = 1, 32 }), "pin_version"},
		"rotatable":                  {vault("", func(e *CatalogEntry) { e.Rotatable, e.CreateBytes = true, 32 }), ""},
		"rotatable by whom":          {vault("", func(e *CatalogEntry) { e.Rotatable = true }), "rotatable"},
		"rotatable pki":              {vault(KindPKI, func(e *CatalogEntry) { e.Rotatable = true }), "rotatable"},
		"rekey":                      {vault("", func(e *CatalogEntry) { e.Rekey, e.CreateBytes = true, 32 }), ""},
		"rekey of a database":        {vault(KindDatabase, func(e *CatalogEntry) { e.Rekey = true }), "rekey"},
		"rekey of all fields":        {vault("", func(e *CatalogEntry) { e.Rekey, e.CreateBytes, e.Field = true, 32, "*" }), "rekey"},
		"boots":                      {vault("", func(e *CatalogEntry) { e.Priority = PriorityBoot }), ""},
		"grace":                      {vault("", func(e *CatalogEntry) { e.Grace = time.Hour }), ""},
		"grace before":               {vault("", func(e *CatalogEntry) { e.Grace = -1 }), "grace"},
		"shortest":                   {vault("", func(e *CatalogEntry) { e.CreateBytes = 16 }), ""},
		"too short":                  {vault("", func(e *CatalogEntry) { e.CreateBytes = 15 }), "too short"},
		"one byte":                   {vault("", func(e *CatalogEntry) { e.CreateBytes = 1 }), "too short"},
		"longest":                    {vault("", func(e *CatalogEntry) { e.CreateBytes = 1024 }), ""},
		"too long":                   {vault("", func(e *CatalogEntry) { e.CreateBytes = 1025 }), "create_bytes"},
		"less than nothing":          {vault("", func(e *CatalogEntry) { e.CreateBytes = -1 }), "create_bytes"},
		"policy with a digit first":  {vault("", func(e *CatalogEntry) { e.Policy = "1p" }), "policy"},
		"variable in capitals":       {vault("", func(e *CatalogEntry) { e.Pattern = "a/{X}" }), "pattern"},
	} {
		if err := tt.e.Validate(); (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// TestOptionsAreFilledIn with the values of the path, and the catalog's own stay as they are.
func TestOptionsAreFilledIn(t *testing.T) {
	c, err := NewCatalog([]CatalogEntry{{
		Pattern: "certs/{team}/{app}", Source: "vault", Kind: KindPKI, Key: "roles/{team}", Policy: "p",
		Options: map[string]string{"common_name": "{app}.{team}.example", "ttl": "1h"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e, _, ok := c.Lookup("certs/pay/web")
		if d := cmp.Diff(map[string]string{"common_name": "web.pay.example", "ttl": "1h"}, e.Options); !ok || d != "" || e.Key != "roles/pay" {
			t.Errorf("key %s, options %s", e.Key, d)
		}
	}
	if e := c.Entries(); len(e) != 1 || e[0].Options["common_name"] != "{app}.{team}.example" {
		t.Errorf("entries %+v", e)
	}
	if (*Catalog)(nil).Entries() != nil || (*Catalog)(nil).Blocked("a") {
		t.Error("the nil catalog has entries")
	}
}

// TestEntriesAreInOrder: what is fixed comes before what is variable, and fixed segments by name.
func TestEntriesAreInOrder(t *testing.T) {
	var in []CatalogEntry
	for _, p := range []string{"{z}/x", "b/{x}", "a/{y}/c", "b/a", "a/b", "{a}/{b}/{c}", "b/b"} {
		in = append(in, CatalogEntry{Pattern: p, Source: "local", Key: "k", Policy: "p"})
	}
	c, err := NewCatalog(in[1:])
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range c.Entries() {
		got = append(got, e.Pattern)
	}
	if d := cmp.Diff([]string{"a/b", "a/{y}/c", "b/a", "b/b", "b/{x}", "{a}/{b}/{c}"}, got); d != "" {
		t.Error(d)
	}
}

// TestKinds: which secrets belong to an owner, can change, and can be copied.
func TestKinds(t *testing.T) {
	for k, want := range map[Kind][3]bool{
		"": {false, true, true}, KindKV: {false, true, true}, KindDatabase: {true, false, false}, KindDatabaseStatic: {false, true, false},
		KindPKI: {}, KindTransitDecrypt: {}, KindTransitDatakey: {}, KindTransitExport: {}, KindWrapped: {}, KindLogin: {true, false, false}, KindEAR: {},
	} {
		if got := [3]bool{k.Leased(), k.Watched(), cacheable(k)}; got != want {
			t.Errorf("%q: %v, want %v", k, got, want)
		}
	}
}

// TestCopiesAreApart: two secrets never share a copy; the same one, named in two ways, does.
func TestCopiesAreApart(t *testing.T) {
	base := CatalogEntry{Source: "s", Mount: "m", Key: "k", Field: "f"}
	seen := map[string]int{cacheKey(base): 0}
	for i, change := range []func(*CatalogEntry){
		func(e *CatalogEntry) { e.Source = "t" }, func(e *CatalogEntry) { e.Kind = KindDatabaseStatic }, func(e *CatalogEntry) { e.Mount = "n" },
		func(e *CatalogEntry) { e.Key = "l" }, func(e *CatalogEntry) { e.Field = "g" }, func(e *CatalogEntry) { e.Source, e.Mount = "sm", "" },
	} {
		e := base
		change(&e)
		if j, ok := seen[cacheKey(e)]; ok {
			t.Errorf("%d and %d share a copy", i+1, j)
		}
		seen[cacheKey(e)] = i + 1
	}
	named := base
	named.Kind = KindKV
	if cacheKey(named) != cacheKey(base) {
		t.Error("kv is two kinds")
	}
}

// TestNewNonces takes a whole key, and a lifetime that is one.
func TestNewNonces(t *testing.T) {
	for _, tt := range []struct {
		key  int
		life time.Duration
		ok   bool
	}{{32, time.Minute, true}, {32, time.Hour, true}, {32, 1, true}, {32, 0, false}, {32, -1, false}, {32, time.Hour + 1, false}, {31, time.Minute, false}, {33, time.Minute, false}, {0, time.Minute, false}} {
		if n, err := NewNonces(make([]byte, tt.key), [32]byte{}, tt.life); (err == nil) != tt.ok || (n != nil) != tt.ok {
			t.Errorf("%d bytes for %s: %v", tt.key, tt.life, err)
		}
	}
}

func FuzzLookup(f *testing.F) {
	c, err := NewCatalog([]CatalogEntry{{Pattern: "a/{x}", Source: "s", Key: "k/{x}", Policy: "p"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a/b")
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, path string) {
		e, _, ok := c.Lookup(path)
		if ok && (strings.Count(e.Key, "/") != 1 || strings.Contains(e.Key, "..") && !pathSegment.MatchString(strings.TrimPrefix(e.Key, "k/"))) {
			t.Errorf("%q became key %q", path, e.Key)
		}
	})
}

func TestNonces(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	n, err := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	nonce, expires, err := n.Issue(now)
	if err != nil || len(nonce) != NonceSize || !expires.Equal(now.Add(time.Minute)) {
		t.Fatalf("%x until %s: %v", nonce, expires, err)
	}
	if _, got, err := n.Check(nonce, now.Add(59*time.Second)); err != nil || !got.Equal(expires) {
		t.Fatalf("until %s: %v", got, err)
	}
	if _, _, err := n.Check(nonce, now.Add(time.Minute)); err == nil {
		t.Error("honoured at its expiry")
	}
	if _, _, err := n.Check(nonce, now.Add(-10*time.Minute)); err == nil {
		t.Error("honoured although our clock went back")
	}
	if _, _, err := n.Check(nonce, now.Add(-time.Minute)); err != nil {
		t.Errorf("the clock of the broker that made it may be a minute ahead: %v", err)
	}
	if _, _, err := n.Check(nonce, now.Add(-time.Minute-time.Millisecond)); err == nil {
		t.Error("honoured although it lives too long")
	}
	for _, size := range []int{0, 1, NonceSize - 1, NonceSize + 1} {
		if _, _, err := n.Check(append(bytes.Clone(nonce), 0)[:size], now); err == nil || !strings.Contains(err.Error(), "not a nonce of this protocol") {
			t.Errorf("of %d bytes: %v", size, err)
		}
	}
	if id, _, err := n.Check(nonce, now); err != nil || !bytes.Equal(id[:], nonce[:nonceBody]) {
		t.Errorf("id %x of %x: %v", id, nonce, err)
	}
	var random [16]byte // all of it is
	for range 64 {
		again, _, err := n.Issue(now)
		if err != nil || bytes.Equal(again, nonce) {
			t.Fatalf("two nonces are one: %v", err)
		}
		for i := range random {
			random[i] |= again[1+8+i]
		}
	}
	if bytes.IndexByte(random[:], 0) >= 0 {
		t.Errorf("some of it stays the same: %x", random)
	}
	for i := range nonce {
		bad := append([]byte(nil), nonce...)
		bad[i] ^= 0x80
		if _, _, err := n.Check(bad, now); err == nil {
			t.Errorf("byte %d can be changed", i)
		}
	}
	otherKey, _ := NewNonces(append(make([]byte, 31), 1), [32]byte{1}, time.Minute)
	otherBroker, _ := NewNonces(make([]byte, 32), [32]byte{2}, time.Minute)
	for name, o := range map[string]*Nonces{"key": otherKey, "broker id": otherBroker} {
		if _, _, err := o.Check(nonce, now); err == nil {
			t.Errorf("a broker with another %s honours it", name)
		}
	}
	replica, _ := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if _, _, err := replica.Check(nonce, now); err != nil {
		t.Errorf("a replica does not: %v", err)
	}
}

func FuzzNonce(f *testing.F) {
	n, err := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	good, _, _ := n.Issue(time.Unix(0, 0))
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := n.Check(b, time.Unix(0, 0)); err != nil {
			return
		}
		for i := range b { // one of ours: then nothing in it may be changed
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if _, _, err := n.Check(bad, time.Unix(0, 0)); err == nil {
				t.Fatalf("byte %d can be changed", i)
			}
		}
	})
}

func BenchmarkNonce(b *testing.B) {
	n, err := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	nonce, _, _ := n.Issue(now)
	for b.Loop() {
		if _, _, err := n.Check(nonce, now); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCatalogPrecedence: what a pattern fixes decides, not what its variables are called, nor the order of entries.
func TestCatalogPrecedence(t *testing.T) {
	names := [][3]string{{"a", "t", "n"}, {"team", "app", "name"}, {"zz", "a", "b"}}
	for _, v := range names {
		narrow := CatalogEntry{Pattern: "{" + v[0] + "}/prod", Source: "local", Key: "prod/{" + v[0] + "}", Policy: "strict"}
		wide := CatalogEntry{Pattern: "{" + v[1] + "}/{" + v[2] + "}", Source: "local", Key: "any/{" + v[1] + "}/{" + v[2] + "}", Policy: "lax"}
		for _, entries := range [][]CatalogEntry{{narrow, wide}, {wide, narrow}} {
			c, err := NewCatalog(entries)
			if err != nil {
				t.Fatal(err)
			}
			if e, _, _ := c.Lookup("pay/prod"); e.Policy != "strict" || e.Key != "prod/pay" {
				t.Errorf("%v: got %s with key %s", v, e.Policy, e.Key)
			}
			if e, _, _ := c.Lookup("pay/test"); e.Policy != "lax" || e.Key != "any/pay/test" {
				t.Errorf("%v: got %s with key %s", v, e.Policy, e.Key)
			}
		}
	}
	c, err := NewCatalog([]CatalogEntry{
		{Pattern: "disks/{host}/{disk}", Source: "local", Key: "x", Policy: "lax"},
		{Pattern: "disks/{vm}/root", Source: "local", Key: "x", Policy: "strict"},
		{Pattern: "disks/a/root", Source: "local", Key: "x", Policy: "own"},
		{Pattern: "{any}/{host}/{disk}", Source: "local", Key: "x", Policy: "laxest"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, policy := range map[string]string{"disks/vm-1/root": "strict", "disks/a/root": "own", "disks/a/data": "lax", "tapes/a/root": "laxest"} {
		if e, _, _ := c.Lookup(path); e.Policy != policy {
			t.Errorf("%s: got %s, want %s", path, e.Policy, policy)
		}
	}
}

// TestCatalogAmbiguous: two patterns that match one path, neither of them narrower, are refused.
func TestCatalogAmbiguous(t *testing.T) {
	for _, tt := range []struct {
		a, b   string
		refuse bool
	}{
		{"a/{x}", "{y}/b", true},
		{"{x}/b/{y}", "a/{z}/{w}", true},
		{"{x}/b/c", "a/{z}/c", true},
		{"{x}/b/c", "a/{z}/d", false}, // no path matches both
		{"{x}/b", "{y}/c", false},
		{"a/{x}", "a/{y}", true}, // the same paths
		{"a/{x}", "a/b", false},
		{"a/{x}/c", "a/{y}", false},
		{"{x}/b/{y}/d", "a/{z}/c/{w}", true},
	} {
		for _, p := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			_, err := NewCatalog([]CatalogEntry{{Pattern: p[0], Source: "local", Key: "k", Policy: "p"}, {Pattern: p[1], Source: "local", Key: "k", Policy: "p"}})
			if (err != nil) != tt.refuse {
				t.Errorf("%q and %q: %v", p[0], p[1], err)
			}
			if err != nil && (!strings.Contains(err.Error(), p[0]) || !strings.Contains(err.Error(), p[1])) {
				t.Errorf("%v does not name both %q and %q", err, p[0], p[1])
			}
		}
	}
}

// TestAmbiguousPatternsAreNamed: the message is the same each time, whatever the order of a map.
func TestAmbiguousPatternsAreNamed(t *testing.T) {
	entry := func(pattern string) CatalogEntry {
		return CatalogEntry{Pattern: pattern, Source: "local", Key: "k", Policy: "p"}
	}
	for range 20 {
		_, err := NewCatalog([]CatalogEntry{
			entry("{a}/prod/x"), entry("{a}/dev/x"), entry("{a}/test/x"), entry("{a}/aaa/y"), entry("us/{b}/x"), entry("eu/{b}/x"), entry("ap/{b}/x"), entry("aa/{b}/z"),
		})
		if err == nil || !strings.Contains(err.Error(), `"ap/{b}/x"`) || !strings.Contains(err.Error(), `"{a}/dev/x"`) {
			t.Fatal(err)
		}
	}
	for _, patterns := range [][]string{
		{"{a}/prod/x", "eu/{b}/y"},                // differ in what is fixed in both
		{"{a}/prod", "{a}/{b}"}, {"a/b", "{a}/b"}, // one is the narrower
		{"{a}/prod", "eu/{b}/x"},
	} {
		if _, err := NewCatalog([]CatalogEntry{entry(patterns[0]), entry(patterns[1])}); err != nil {
			t.Errorf("%v: %v", patterns, err)
		}
	}
}

// TestSomeOptionsAreFilledIn, one or more; without any there are none.
func TestSomeOptionsAreFilledIn(t *testing.T) {
	for _, options := range []map[string]string{nil, {"common_name": "{vm}.corp"}, {"common_name": "{vm}.corp", "uri_sans": "spiffe://corp/{vm}", "ttl": "1h"}} {
		c, err := NewCatalog([]CatalogEntry{{Pattern: "certs/{vm}", Source: "vault", Kind: KindPKI, Key: "role", Policy: "p", Options: options}})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for k, v := range options {
			want[k] = strings.ReplaceAll(v, "{vm}", "a-b")
		}
		e, _, ok := c.Lookup("certs/a-b")
		if d := cmp.Diff(want, e.Options, cmpopts.EquateEmpty()); !ok || d != "" {
			t.Error(d)
		}
		if len(options) == 0 && e.Options != nil {
			t.Error("a map of nothing")
		}
	}
}

// TestEncodingOfOneField: base64 is of one field, of a source that holds text.
func TestEncodingOfOneField(t *testing.T) {
	for name, tt := range map[string]struct {
		source, field, encoding string
		ok                      bool
	}{
		"one field":  {"vault", "key", "base64", true},
		"default":    {"vault", "", "base64", true},
		"all fields": {"vault", "*", "base64", false},
		"local":      {"local", "", "base64", false},
		"hex":        {"vault", "key", "hex", false},
	} {
		e := CatalogEntry{Pattern: "a", Source: tt.source, Key: "a", Policy: "p", Field: tt.field, Options: map[string]string{"encoding": tt.encoding}}
		if err := e.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
