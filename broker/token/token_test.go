package token

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/internal/testservers"
)

const issuer = "https://broker.example"

// store is the shared state: the contract of Config.Key, and its faults.
type store struct {
	mu   sync.Mutex
	keys map[string][]byte
	down bool
	// lost makes the next write succeed without an answer.
	lost bool
}

var errDown = errors.New("no quorum")

func (s *store) Key(ctx context.Context, name string, generate func() ([]byte, error)) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errDown
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if b, ok := s.keys[name]; ok {
		return bytes.Clone(b), nil
	}
	b, err := generate()
	if err != nil {
		return nil, fmt.Errorf("generate key %s: %w", name, err)
	}
	if s.keys == nil {
		s.keys = map[string][]byte{}
	}
	s.keys[name] = bytes.Clone(b)
	if s.lost {
		s.lost = false
		return nil, errDown
	}
	return b, nil
}

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var start = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// fixedKey is the P-256 key of RFC 7515 A.3, encoded by hand as documented.
func fixedKey(t testing.TB) []byte {
	t.Helper()
	const pkcs8Head = "3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420"
	head, d := unhex(t, pkcs8Head), unb64(t, "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI")
	return fmt.Appendf(nil, `{"v":1,"alg":"ES256","created":%d,"pkcs8":%q}`, start.Unix(), base64.StdEncoding.EncodeToString(append(head, d...)))
}

func unb64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		t.Fatalf("decode %q: %v", s, err)
	}
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var b []byte
	if _, err := fmt.Sscanf(s, "%x", &b); err != nil {
		t.Fatal(err)
	}
	return b
}

func newSource(t testing.TB, cfg Config) *Source {
	t.Helper()
	if cfg.Issuer == "" {
		cfg.Issuer = issuer
	}
	if cfg.Key == nil {
		cfg.Key = new(store).Key
	}
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fixed is a source with a known key and a clock that stands.
func fixed(t testing.TB) *Source {
	st := &store{keys: map[string][]byte{"token/1": fixedKey(t)}}
	return newSource(t, Config{Key: st.Key, Now: func() time.Time { return start }})
}

var (
	measurement = strings.Repeat("ab", 48)
	chip        = strings.Repeat("c1", 64)
)

// granted is a good grant at a time.
func granted(t testing.TB, now time.Time, change ...func(*broker.Granted)) broker.Granted {
	t.Helper()
	public := make([]byte, 32)
	public[0] = 9 // the base point of RFC 7748: any point will do
	r, err := seal.ParseRecipient(seal.X25519, public)
	if err != nil {
		t.Fatal(err)
	}
	g := broker.Granted{
		Entry:     broker.CatalogEntry{Pattern: "tokens/vault", Source: "token", Kind: broker.KindEAR, Key: "vault", Policy: "orders"},
		Recipient: r, PublicKey: public,
		Claims: attest.Claims{
			Type: attest.TypeSNP, HardwareModel: "Milan", Bound: true, BoundToCPUTEE: true, ChipID: chip,
			TCB:          attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
			Measurements: map[string]string{"measurement": measurement}, HostData: strings.Repeat("00", 32),
			ReportData: strings.Repeat("5e", 64), Collateral: attest.CollateralState{State: attest.CollateralFresh, AgeSeconds: 3600},
			SNP: map[string]string{"secret_vendor_section": "not for tokens"},
		},
		PolicyDigest: "sha256:" + strings.Repeat("d0", 32), DecisionID: "01JDFG0000000000000000000A",
		TTL: 2 * time.Minute, Now: now,
	}
	for _, f := range change {
		f(&g)
	}
	return g
}

func mint(t testing.TB, s *Source, g broker.Granted) string {
	t.Helper()
	secret, err := s.Fetch(t.Context(), grant.Mint(g))
	if err != nil {
		t.Fatal(err)
	}
	return string(secret.Value)
}

func payload(t testing.TB, token string) []byte {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	return unb64(t, parts[1])
}

func decode(t testing.TB, b []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("decode %s: %v", b, err)
	}
	return m
}

// at follows a path of names.
func at(t testing.TB, v any, path ...string) any {
	t.Helper()
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			t.Fatalf("%v: not an object at %q", path, p)
		}
		v = m[p]
	}
	return v
}

// TestGolden holds both dialects byte for byte, up to the signature, which is randomised.
// It is run with UPDATE_GOLDEN=1 to write the files anew; read the difference.
func TestGolden(t *testing.T) {
	for _, dialect := range []string{Draft03, Veraison} {
		token := mint(t, fixed(t), granted(t, start, func(g *broker.Granted) { g.Entry.Options = map[string]string{"dialect": dialect} }))
		var got bytes.Buffer
		if err := json.Indent(&got, payload(t, token), "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		name := filepath.Join("testdata", dialect+".json")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got.String()); d != "" {
			t.Errorf("%s (-want +got):\n%s", dialect, d)
		}
		header := string(unb64(t, strings.Split(token, ".")[0]))
		// The thumbprint of RFC 7515's key by RFC 7638 §3, made here from its text.
		canonical := `{"crv":"P-256","kty":"EC","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
		sum := sha256.Sum256([]byte(canonical))
		if want := `{"alg":"ES256","kid":"` + b64(sum[:]) + `","typ":"JWT"}`; header != want {
			t.Errorf("header %s, want %s", header, want)
		}
	}
}

// TestVerify checks a token as two relying parties would: one with jwx and the
// published key set, one by hand.
func TestVerify(t *testing.T) {
	s := fixed(t)
	g := granted(t, start)
	secret, err := s.Fetch(t.Context(), grant.Mint(g))
	if err != nil {
		t.Fatal(err)
	}
	if secret.ContentType != ContentType || !secret.Expires.Equal(start.Add(2*time.Minute)) || secret.Lease != "" {
		t.Errorf("secret %+v", secret)
	}
	token := secret.Value
	set, err := jwk.Parse(get(t, s, "GET", keysPath).Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.Parse(token, jwt.WithKeySet(set), jwt.WithIssuer(issuer), jwt.WithAudience("vault"), jwt.WithRequiredClaim("exp"),
		jwt.WithClock(jwt.ClockFunc(func() time.Time { return start.Add(time.Minute) })))
	if err != nil {
		t.Fatal(err)
	}
	if id, _ := parsed.JwtID(); id != g.DecisionID {
		t.Errorf("jti %q", id)
	}

	parts := strings.Split(string(token), ".")
	sig := unb64(t, parts[2])
	if len(sig) != 64 {
		t.Fatalf("signature of %d bytes", len(sig))
	}
	jwks := decode(t, get(t, s, "GET", keysPath).Body.Bytes())
	key := jwks["keys"].([]any)[0].(map[string]any)
	point := slices.Concat([]byte{4}, unb64(t, key["x"].(string)), unb64(t, key["y"].(string)))
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(pub, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("signature does not verify by hand")
	}
	digest[0] ^= 1
	if ecdsa.Verify(pub, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("signature verifies for anything")
	}

	m := decode(t, payload(t, string(token)))
	for _, c := range []struct {
		want any
		path []string
	}{
		{"tag:ietf.org,2026:rats/ear#03", []string{"eat_profile"}},
		{issuer, []string{"iss"}},
		{"claviger:orders", []string{"sub"}},
		{"vault", []string{"aud"}},
		{float64(start.Unix()), []string{"iat"}},
		{float64(start.Unix() + 120), []string{"exp"}},
		{"affirming", []string{"ear_status"}},
		{"claviger", []string{"ear_verifier_id", "build"}},
		{"https://github.com/claviger/claviger", []string{"ear_verifier_id", "developer"}},
		{"affirming", []string{"submods", "sev-snp", "ear_status"}},
		{b64(bytes.Repeat([]byte{0x5e}, 64)), []string{"submods", "sev-snp", "eat_nonce"}},
		{[]any{g.PolicyDigest}, []string{"submods", "sev-snp", "ear_appraisal_policy_ids"}},
		{measurement, []string{"submods", "sev-snp", "ear_claviger_annotated_evidence", "measurements", "measurement"}},
		{false, []string{"submods", "sev-snp", "ear_claviger_annotated_evidence", "simulated"}},
		{measurement, []string{"claviger", "measurement"}},
		{"false", []string{"claviger", "debuggable"}},
		{"OKP", []string{"cnf", "jwk", "kty"}},
	} {
		if d := cmp.Diff(c.want, at(t, m, c.path...)); d != "" {
			t.Errorf("%v (-want +got):\n%s", c.path, d)
		}
	}
	for _, bits := range []struct{ debuggable, simulated, tee bool }{{true, false, false}, {false, true, false}, {false, false, true}} {
		m := decode(t, payload(t, mint(t, s, granted(t, start, func(g *broker.Granted) {
			g.Claims.Debuggable, g.Claims.Simulated, g.Claims.BoundToCPUTEE = bits.debuggable, bits.simulated, bits.tee
		}))))
		ev := at(t, m, "submods", "sev-snp", "ear_claviger_annotated_evidence").(map[string]any)
		flat := m["claviger"].(map[string]any)
		if ev["debuggable"] != bits.debuggable || ev["simulated"] != bits.simulated || ev["bound_to_cpu_tee"] != bits.tee ||
			flat["debuggable"] != fmt.Sprint(bits.debuggable) || flat["simulated"] != fmt.Sprint(bits.simulated) {
			t.Errorf("%+v: evidence %v, flat %v", bits, ev, flat)
		}
	}
	if bytes.Contains(payload(t, string(token)), []byte("secret_vendor_section")) {
		t.Error("the vendor's section is in the token")
	}
}

// TestFlatHoldsStrings: and no measurement, whatever its name, replaces one of the others.
func TestFlatHoldsStrings(t *testing.T) {
	g := granted(t, start, func(g *broker.Granted) {
		g.Claims.Type, g.Claims.ChipID, g.Claims.Simulated = attest.TypeTDX, "", true
		g.Claims.Measurements = map[string]string{"mrtd": "aa", "rtmr0": "bb", "simulated": "false", "policy": "admin", "chip_id": "stolen"}
	})
	m := decode(t, payload(t, mint(t, fixed(t), g)))
	want := map[string]any{
		"type": "tdx", "hardware_model": "Milan", "chip_id": "", "host_data": g.Claims.HostData, "tcb_status": "Unknown",
		"debuggable": "false", "simulated": "true", "policy": "orders", "policy_digest": g.PolicyDigest, "mrtd": "aa", "rtmr0": "bb",
	}
	if d := cmp.Diff(want, m["claviger"]); d != "" {
		t.Error(d)
	}
}

func TestRefuses(t *testing.T) {
	for name, change := range map[string]func(*broker.Granted){
		"unknown dialect":       func(g *broker.Granted) { g.Entry.Options = map[string]string{"dialect": "draft-99"} },
		"dialect from the path": func(g *broker.Granted) { g.Entry.Options = map[string]string{"dialect": "Draft-03"} },
		"another kind":          func(g *broker.Granted) { g.Entry.Kind = broker.KindKV },
		"no kind":               func(g *broker.Granted) { g.Entry.Kind = "" },
		"no lifetime":           func(g *broker.Granted) { g.TTL = 0 },
		"no lifetime, ahead":    func(g *broker.Granted) { g.TTL, g.Now = 0, start.Add(time.Minute) },
		"negative lifetime":     func(g *broker.Granted) { g.TTL = -time.Minute },
		"less than a second":    func(g *broker.Granted) { g.TTL = time.Millisecond },
		"expired":               func(g *broker.Granted) { g.Now = start.Add(-3 * time.Minute) },
		"no time":               func(g *broker.Granted) { g.Now = time.Time{} },
		"unbound evidence":      func(g *broker.Granted) { g.Claims.Bound = false },
		"no claims":             func(g *broker.Granted) { g.Claims = attest.Claims{} },
		"no type":               func(g *broker.Granted) { g.Claims.Type = "" },
		"no audience":           func(g *broker.Granted) { g.Entry.Key = "" },
		"no policy":             func(g *broker.Granted) { g.Entry.Policy = "" },
		"no policy digest":      func(g *broker.Granted) { g.PolicyDigest = "" },
		"no decision":           func(g *broker.Granted) { g.DecisionID = "" },
		"no recipient":          func(g *broker.Granted) { g.Recipient = nil },
		"no public key":         func(g *broker.Granted) { g.PublicKey = nil },
		"small-order key":       func(g *broker.Granted) { g.PublicKey = make([]byte, 32) },
		"key with a tail":       func(g *broker.Granted) { g.PublicKey = append(bytes.Clone(g.PublicKey), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			secret, err := fixed(t).Fetch(t.Context(), grant.Mint(granted(t, start, change)))
			if err == nil || secret.Value != nil {
				t.Errorf("error %v, token %q", err, secret.Value)
			}
		})
	}
}

// TestGrant: authority is spent once, and is not made up.
func TestGrant(t *testing.T) {
	s := fixed(t)
	for name, g := range map[string]*broker.Grant{"nil": nil, "zero": new(broker.Grant)} {
		if secret, err := s.Fetch(t.Context(), g); err == nil || secret.Value != nil {
			t.Errorf("%s grant minted %q", name, secret.Value)
		}
	}
	g := grant.Mint(granted(t, start))
	if _, err := s.Fetch(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if secret, err := s.Fetch(t.Context(), g); err == nil || secret.Value != nil {
		t.Errorf("spent grant minted %q", secret.Value)
	}
}

func TestLifetime(t *testing.T) {
	for _, c := range []struct{ max, granted, limit, want time.Duration }{
		{0, time.Minute, 0, time.Minute},
		{0, time.Hour, 0, 5 * time.Minute},
		{time.Hour, 30 * time.Minute, 0, 30 * time.Minute},
		{30 * time.Second, time.Minute, 0, 30 * time.Second},
		{0, time.Minute, 20 * time.Second, 20 * time.Second}, // the catalog says less than the policy
		{0, time.Minute, time.Hour, time.Minute},
	} {
		s := newSource(t, Config{MaxTTL: c.max, Now: func() time.Time { return start }})
		m := decode(t, payload(t, mint(t, s, granted(t, start, func(g *broker.Granted) { g.TTL, g.Cap = c.granted, c.limit }))))
		if got := time.Duration(m["exp"].(float64)-m["iat"].(float64)) * time.Second; got != c.want {
			t.Errorf("at most %s, granted %s: lives %s, want %s", c.max, c.granted, got, c.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	filled := &store{keys: map[string][]byte{"token/1": fixedKey(t)}}
	key := filled.Key
	for name, cfg := range map[string]Config{
		"no issuer":         {Key: key},
		"http":              {Issuer: "http://broker.example", Key: key},
		"no host":           {Issuer: "https:///x", Key: key},
		"slash at the end":  {Issuer: issuer + "/", Key: key},
		"query":             {Issuer: issuer + "?x=1", Key: key},
		"empty query":       {Issuer: issuer + "?", Key: key},
		"fragment":          {Issuer: issuer + "#x", Key: key},
		"user":              {Issuer: "https://me@broker.example", Key: key},
		"not a URL":         {Issuer: "https://%zz", Key: key},
		"no store":          {Issuer: issuer},
		"store down":        {Issuer: issuer, Key: (&store{down: true}).Key},
		"symmetric":         {Issuer: issuer, Key: key, Algorithm: "HS256"},
		"unsigned":          {Issuer: issuer, Key: key, Algorithm: "none"},
		"negative lifetime": {Issuer: issuer, Key: key, MaxTTL: -1},
	} {
		if _, err := New(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheck(t *testing.T) {
	for dialect, ok := range map[string]bool{"": true, Draft03: true, Veraison: true, "trustee": false, "{d}": false} {
		e := broker.CatalogEntry{Kind: broker.KindEAR, Options: map[string]string{"dialect": dialect}}
		if err := Check(e); (err == nil) != ok {
			t.Errorf("%q: %v", dialect, err)
		}
	}
}

// TestVector is the table of derivation, and the table in docs/tokens.md.
func TestVector(t *testing.T) {
	base := granted(t, start).Claims
	with := func(f func(*attest.Claims)) attest.Claims { c := base; f(&c); return c }
	tcb := func(s string) attest.Claims { return with(func(c *attest.Claims) { c.TCB.Status = s }) }
	for name, c := range map[string]struct {
		claims attest.Claims
		want   vector // configuration, executables, hardware, runtime-opaque
		status string
	}{
		"SNP":                     {base, vector{0, 0, 2, 2}, "affirming"},
		"TDX":                     {with(func(c *attest.Claims) { c.Type, c.TCB.Status = attest.TypeTDX, attest.TCBUpToDate }), vector{0, 0, 2, 2}, "affirming"},
		"stale collateral":        {with(func(c *attest.Claims) { c.Collateral.State = attest.CollateralStale }), vector{0, 0, 2, 2}, "affirming"},
		"expired collateral":      {with(func(c *attest.Claims) { c.Collateral.State = attest.CollateralExpired }), vector{}, "none"},
		"no collateral":           {with(func(c *attest.Claims) { c.Collateral.State = "" }), vector{}, "none"},
		"another type":            {with(func(c *attest.Claims) { c.Type = "toaster" }), vector{0, 0, 2, 0}, "none"},
		"another verifier's":      {with(func(c *attest.Claims) { c.Type = attest.TypeResult }), vector{}, "none"},
		"not bound to a TEE":      {with(func(c *attest.Claims) { c.BoundToCPUTEE = false }), vector{0, 0, 2, 0}, "none"},
		"migratable":              {with(func(c *attest.Claims) { c.Migratable = true }), vector{0, 0, 2, 0}, "none"},
		"debuggable":              {with(func(c *attest.Claims) { c.Debuggable = true }), vector{96, 0, 2, 96}, "contraindicated"},
		"simulated":               {with(func(c *attest.Claims) { c.Simulated = true }), vector{0, 0, 97, 0}, "contraindicated"},
		"simulated, up to date":   {with(func(c *attest.Claims) { c.Simulated, c.TCB.Status = true, attest.TCBUpToDate }), vector{0, 0, 97, 0}, "contraindicated"},
		"revoked, debuggable":     {with(func(c *attest.Claims) { c.Debuggable, c.TCB.Status = true, attest.TCBRevoked }), vector{96, 0, 96, 96}, "contraindicated"},
		"UpToDate":                {tcb(attest.TCBUpToDate), vector{0, 0, 2, 2}, "affirming"},
		"SWHardeningNeeded":       {tcb(attest.TCBSWHardeningNeeded), vector{0, 0, 32, 0}, "warning"},
		"ConfigurationNeeded":     {tcb(attest.TCBConfigurationNeeded), vector{32, 0, 2, 2}, "warning"},
		"ConfigAndSWHardening":    {tcb(attest.TCBConfigAndSWHardening), vector{32, 0, 32, 0}, "warning"},
		"OutOfDate":               {tcb(attest.TCBOutOfDate), vector{0, 0, 32, 0}, "warning"},
		"OutOfDateConfiguration":  {tcb(attest.TCBOutOfDateConfiguration), vector{32, 0, 32, 0}, "warning"},
		"Revoked":                 {tcb(attest.TCBRevoked), vector{0, 0, 96, 0}, "contraindicated"},
		"no status":               {tcb(""), vector{}, "none"},
		"a status not known here": {tcb("Shiny"), vector{}, "none"},
		"zero":                    {attest.Claims{}, vector{}, "none"},
	} {
		got := appraise(c.claims)
		if got != c.want || got.status() != c.status {
			t.Errorf("%s: %+v %s, want %+v %s", name, got, got.status(), c.want, c.status)
		}
	}
}

// TestNeverAffirmed tries every combination: simulated or debuggable hardware
// is not affirmed in either dialect, and the status is no better than the worst claim.
func TestNeverAffirmed(t *testing.T) {
	statuses := []string{
		attest.TCBUpToDate, attest.TCBSWHardeningNeeded, attest.TCBConfigurationNeeded, attest.TCBConfigAndSWHardening,
		attest.TCBOutOfDate, attest.TCBOutOfDateConfiguration, attest.TCBRevoked, attest.TCBUnknown, "",
	}
	s := fixed(t)
	for _, status := range statuses {
		for _, state := range []string{attest.CollateralFresh, attest.CollateralStale, attest.CollateralExpired, ""} {
			for bits := range 4 {
				for _, dialect := range []string{Draft03, Veraison} {
					g := granted(t, start, func(g *broker.Granted) {
						g.Claims.TCB.Status, g.Claims.Collateral.State = status, state
						g.Claims.Simulated, g.Claims.Debuggable = bits&1 != 0, bits&2 != 0
						g.Entry.Options = map[string]string{"dialect": dialect}
					})
					sub := at(t, decode(t, payload(t, mint(t, s, g))), "submods", "sev-snp").(map[string]any)
					statusName, vectorName := "ear_status", "ear_trustworthiness_vector"
					if dialect == Veraison {
						statusName, vectorName = "ear.status", "ear.trustworthiness-vector"
					}
					if got := sub[statusName]; bits != 0 && got != "contraindicated" {
						t.Errorf("%s %s simulated,debuggable=%b: %v", status, state, bits, got)
					}
					worst := 0.0
					for _, v := range sub[vectorName].(map[string]any) {
						worst = max(worst, v.(float64))
					}
					tier := map[bool]string{worst < 2: "none", worst >= 2 && worst < 32: "affirming", worst >= 32 && worst < 96: "warning", worst >= 96: "contraindicated"}[true]
					if sub[statusName] != tier {
						t.Errorf("%s %s %b: status %v, worst claim %v", status, state, bits, sub[statusName], worst)
					}
				}
			}
		}
	}
}

// TestShapeOfDraft holds our names and JSON kinds against the working group's own examples.
func TestShapeOfDraft(t *testing.T) {
	examples, _ := filepath.Glob(filepath.Join(testservers.Root(t), "../shared/evidence/ear/draft-ietf-rats-ear/*-json-*.diag"))
	if len(examples) == 0 {
		t.Skip("../shared/evidence/ear is not here")
	}
	ours := decode(t, payload(t, mint(t, fixed(t), granted(t, start))))
	sub := at(t, ours, "submods", "sev-snp").(map[string]any)
	known := map[string]bool{}
	for _, name := range examples {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		theirs := decode(t, b)
		same(t, name, theirs, ours, "ear_raw_evidence")
		if theirs["eat_profile"] != ours["eat_profile"] {
			t.Errorf("%s: profile %v, ours %v", name, theirs["eat_profile"], ours["eat_profile"])
		}
		for _, s := range theirs["submods"].(map[string]any) {
			same(t, name, s.(map[string]any), sub, "ear_teep_claims", "ear_veraison_annotated_evidence", "ear_veraison_policy_claims", "ear_veraison_key_attestation")
			for n := range s.(map[string]any) {
				known[n] = true
			}
			vec := at(t, s, "ear_trustworthiness_vector").(map[string]any)
			for n := range vec {
				known[n] = true
			}
		}
		for n := range theirs {
			known[n] = true
		}
	}
	for _, n := range slices.Concat(slices.Collect(maps.Keys(ours)), slices.Collect(maps.Keys(sub))) {
		if strings.HasPrefix(n, "ear_") && !known[n] && n != "ear_claviger_annotated_evidence" {
			t.Errorf("%s is in none of the examples", n)
		}
	}
}

// same wants each of theirs, but the optional ones, in ours with the same kind of value.
func same(t *testing.T, where string, theirs, ours map[string]any, optional ...string) {
	t.Helper()
	for n, v := range theirs {
		if slices.Contains(optional, n) {
			continue
		}
		if want, got := fmt.Sprintf("%T", v), fmt.Sprintf("%T", ours[n]); want != got {
			t.Errorf("%s: %s is %s, ours %s", filepath.Base(where), n, want, got)
		}
	}
}

// TestVeraisonNames: what github.com/veraison/ear v1.1.3 requires, by its documentation.
func TestVeraisonNames(t *testing.T) {
	g := granted(t, start, func(g *broker.Granted) { g.Entry.Options = map[string]string{"dialect": Veraison} })
	m := decode(t, payload(t, mint(t, fixed(t), g)))
	if m["eat_profile"] != "tag:github.com,2023:veraison/ear" {
		t.Errorf("profile %v", m["eat_profile"])
	}
	for _, path := range [][]string{
		{"ear.verifier-id", "build"},
		{"ear.verifier-id", "developer"},
		{"submods", "sev-snp", "ear.status"},
		{"submods", "sev-snp", "ear.appraisal-policy-id"},
		{"submods", "sev-snp", "ear.veraison.annotated-evidence", "hardware_model"},
	} {
		if _, ok := at(t, m, path...).(string); !ok {
			t.Errorf("%v is no text", path)
		}
	}
	if n := at(t, m, "submods", "sev-snp", "ear.trustworthiness-vector", "hardware"); n != 2.0 {
		t.Errorf("hardware %v", n)
	}
	if b := payload(t, mint(t, fixed(t), g)); bytes.Contains(b, []byte(`"ear_`)) {
		t.Errorf("names of the other dialect: %s", b)
	}
}

// TestDocumentedExample: the example in the document is a real token's.
func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(testservers.Root(t), "docs/tokens.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```json\n(.*?)```").FindSubmatch(doc)
	if block == nil {
		t.Fatal("no example")
	}
	golden, err := os.ReadFile("testdata/draft-03.json")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(decode(t, golden), decode(t, block[1])); d != "" {
		t.Errorf("docs/tokens.md (-token +document):\n%s", d)
	}
}

// TestForgeries: each with the genuine key set, so each can only fail for its own fault.
func TestForgeries(t *testing.T) {
	s := fixed(t)
	set, err := jwk.Parse(get(t, s, "GET", keysPath).Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	verify := func(token string) error {
		_, err := jws.Verify([]byte(token), jws.WithKeySet(set))
		return err
	}
	good := mint(t, s, granted(t, start))
	if err := verify(good); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	other := strings.Split(mint(t, newSource(t, Config{Now: func() time.Time { return start }}), granted(t, start)), ".")
	changed := b64([]byte(strings.Replace(string(payload(t, good)), "orders", "admins", 1)))
	for name, token := range map[string]string{
		"changed payload":          parts[0] + "." + changed + "." + parts[2],
		"unsigned":                 b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		"another key":              strings.Join(other, "."),
		"another key under our id": parts[0] + "." + other[1] + "." + other[2],
	} {
		if verify(token) == nil {
			t.Errorf("%s: verifies", name)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	for _, alg := range []string{ES256, RS256} {
		b.Run(alg, func(b *testing.B) {
			s := newSource(b, Config{Algorithm: alg})
			g := granted(b, time.Now(), func(g *broker.Granted) { g.TTL = time.Hour })
			b.ReportAllocs()
			for b.Loop() {
				g.Now = time.Now()
				mint(b, s, g)
			}
		})
	}
}
