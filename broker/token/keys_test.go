package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
)

func get(t testing.TB, s *Source, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return w
}

// kids of the published keys, in order.
func kids(t testing.TB, s *Source) []string {
	t.Helper()
	var set struct {
		Keys []struct{ Kid string }
	}
	if err := json.Unmarshal(get(t, s, "GET", keysPath).Body.Bytes(), &set); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, k := range set.Keys {
		out = append(out, k.Kid)
	}
	return out
}

func kidOf(t testing.TB, token string) string {
	t.Helper()
	return decode(t, unb64(t, strings.Split(token, ".")[0]))["kid"].(string)
}

// TestRotation follows one rotation on two replicas: the new key is published
// before it signs, the old one until its last token has expired, and at every
// moment each replica's key set verifies what either mints.
func TestRotation(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	cfg := Config{Key: st.Key, Now: c.Now, Lead: time.Hour, MaxTTL: 10 * time.Minute}
	a, b := newSource(t, cfg), newSource(t, cfg)
	old := kids(t, a)[0]
	if d := cmp.Diff(kids(t, a), kids(t, b)); d != "" {
		t.Fatalf("replicas differ: %s", d)
	}
	check := func(when, signs string, published ...string) {
		t.Helper()
		for _, s := range []*Source{a, b} {
			for _, token := range []string{mint(t, a, granted(t, c.Now())), mint(t, b, granted(t, c.Now()))} {
				if got := kidOf(t, token); got != signs {
					t.Errorf("%s: signed with %s, want %s", when, got, signs)
				}
				set, err := jwk.Parse(get(t, s, "GET", keysPath).Body.Bytes())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := jws.Verify([]byte(token), jws.WithKeySet(set)); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			if d := cmp.Diff(published, kids(t, s)); d != "" {
				t.Errorf("%s: published (-want +got): %s", when, d)
			}
		}
	}
	check("at first", old, old)
	c.add(24 * time.Hour)
	fresh, err := a.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.Rotate(t.Context()); err != nil || again != fresh {
		t.Errorf("rotating during a rotation: %s %v, want %s", again, err, fresh)
	}
	check("published", old, old, fresh)
	c.add(time.Hour - time.Second)
	check("a second before", old, old, fresh)
	c.add(time.Second)
	check("signing", fresh, old, fresh)
	c.add(10*time.Minute + keepFor - time.Second)
	check("a second before it goes", fresh, old, fresh)
	c.add(time.Second)
	check("gone", fresh, fresh)

	// One who starts now sees the same.
	b = newSource(t, cfg)
	check("after a restart", fresh, fresh)
}

// TestRotationReachesOthers without a word between replicas.
func TestRotationReachesOthers(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	cfg := Config{Key: st.Key, Now: c.Now}
	a, b := newSource(t, cfg), newSource(t, cfg)
	fresh, err := a.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.add(refreshEvery)
	// Even if the one who asks first hangs up.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", keysPath, nil))
	if !slices.Contains(kids(t, b), fresh) {
		t.Errorf("the other replica does not publish %s", fresh)
	}
}

// TestReplace: a leaked key is withdrawn at once, everywhere, and for ever.
func TestReplace(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	cfg := Config{Key: st.Key, Now: c.Now}
	a, b := newSource(t, cfg), newSource(t, cfg)
	if _, err := b.Rotate(t.Context()); err != nil { // one is waiting: it does not survive either
		t.Fatal(err)
	}
	fresh, err := a.Replace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.add(refreshEvery)
	for name, s := range map[string]*Source{"a": a, "b": b, "restarted": newSource(t, cfg)} {
		if d := cmp.Diff([]string{fresh}, kids(t, s)); d != "" {
			t.Errorf("%s (-want +got): %s", name, d)
		}
		if got := kidOf(t, mint(t, s, granted(t, c.Now()))); got != fresh {
			t.Errorf("%s signs with %s", name, got)
		}
	}
	// A clock that stands before the replacement does not bring the old key back.
	early := &clock{now: start.Add(-time.Hour)}
	cfg.Now = early.Now
	if d := cmp.Diff([]string{fresh}, kids(t, newSource(t, cfg))); d != "" {
		t.Errorf("clock behind (-want +got): %s", d)
	}
	// And it ends like any other; it does not count as one that waits.
	next, err := b.Rotate(t.Context())
	if err != nil || next == fresh {
		t.Fatalf("rotated from %s to %s: %v", fresh, next, err)
	}
	c.add(2 * time.Hour)
	if d := cmp.Diff([]string{next}, kids(t, b)); d != "" {
		t.Errorf("next rotation (-want +got): %s", d)
	}
}

// TestReplaceIsNotSwallowed by an ordinary rotation that another replica made in between.
func TestReplaceIsNotSwallowed(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	cfg := Config{Key: st.Key, Now: c.Now}
	a, b := newSource(t, cfg), newSource(t, cfg)
	first := true
	inner := cfg.Key
	a.cfg.Key = func(ctx context.Context, name string, generate func() ([]byte, error)) ([]byte, error) {
		if first && name == "token/2" {
			first = false
			defer func() {
				if _, err := b.Rotate(ctx); err != nil {
					t.Error(err)
				}
			}()
		}
		return inner(ctx, name, generate)
	}
	fresh, err := a.Replace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.add(refreshEvery)
	for _, s := range []*Source{a, b} {
		if d := cmp.Diff([]string{fresh}, kids(t, s)); d != "" {
			t.Errorf("(-want +got): %s", d)
		}
	}
}

// TestRotateAtOnce: replicas that rotate at the same moment make one key.
func TestRotateAtOnce(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	cfg := Config{Key: st.Key, Now: c.Now}
	got := make([]string, 8)
	var wg sync.WaitGroup
	for i := range got {
		s := newSource(t, cfg)
		wg.Go(func() {
			kid, err := s.Rotate(t.Context())
			if err != nil {
				t.Error(err)
			}
			got[i] = kid
			mint(t, s, granted(t, start))
			get(t, s, "GET", keysPath)
		})
	}
	wg.Wait()
	if len(slices.Compact(slices.Clone(got))) != 1 || len(st.keys) != 2 {
		t.Errorf("%d keys: %v", len(st.keys), got)
	}
}

// TestStoreFaults: a rotation that failed has not happened, one whose answer
// was lost has; without the store what is known goes on.
func TestStoreFaults(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	s := newSource(t, Config{Key: st.Key, Now: c.Now})
	old := kids(t, s)
	st.down = true
	if _, err := s.Rotate(t.Context()); err == nil {
		t.Error("rotated without a store")
	}
	c.add(time.Hour)
	if d := cmp.Diff(old, kids(t, s)); d != "" {
		t.Errorf("store down (-want +got): %s", d)
	}
	mint(t, s, granted(t, c.Now()))
	st.down = false
	if d := cmp.Diff(old, kids(t, s)); d != "" {
		t.Errorf("store back (-want +got): %s", d)
	}
	st.lost = true
	if _, err := s.Rotate(t.Context()); err == nil {
		t.Error("no error though the answer was lost")
	}
	kid, err := s.Rotate(t.Context())
	if err != nil || len(st.keys) != 2 || !slices.Contains(kids(t, s), kid) {
		t.Errorf("%d keys, %s, %v", len(st.keys), kid, err)
	}
}

// TestPublishesNoSecret: neither private nor symmetric keys, with either algorithm.
func TestPublishesNoSecret(t *testing.T) {
	for alg, members := range map[string][]string{
		ES256: {"alg", "crv", "kid", "kty", "use", "x", "y"},
		RS256: {"alg", "e", "kid", "kty", "n", "use"},
	} {
		s := newSource(t, Config{Algorithm: alg})
		m := decode(t, get(t, s, "GET", keysPath).Body.Bytes())
		for _, k := range m["keys"].([]any) {
			k := k.(map[string]any)
			if got := sortedKeys(k); !slices.Equal(got, members) {
				t.Errorf("%s: members %v, want %v", alg, got, members)
			}
			if k["kty"] == "oct" || k["use"] != "sig" || k["alg"] != alg {
				t.Errorf("%v", k)
			}
		}
		if d := cmp.Diff([]any{alg}, decode(t, get(t, s, "GET", discoveryPath).Body.Bytes())["id_token_signing_alg_values_supported"]); d != "" {
			t.Error(d)
		}
		set, err := jwk.Parse(get(t, s, "GET", keysPath).Body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := jws.Verify([]byte(mint(t, s, granted(t, time.Now()))), jws.WithKeySet(set)); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func sortedKeys(m map[string]any) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// TestAlgorithmIsTheKeys: changing the configuration touches no key; rotating does.
func TestAlgorithmIsTheKeys(t *testing.T) {
	st, c := &store{}, &clock{now: start}
	newSource(t, Config{Key: st.Key, Now: c.Now})
	s := newSource(t, Config{Key: st.Key, Now: c.Now, Algorithm: RS256})
	if _, err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := decode(t, get(t, s, "GET", discoveryPath).Body.Bytes())
	if diff := cmp.Diff([]any{ES256, RS256}, d["id_token_signing_alg_values_supported"]); diff != "" {
		t.Error(diff)
	}
	c.add(time.Hour)
	header := strings.Split(mint(t, s, granted(t, c.Now())), ".")[0]
	if alg := decode(t, unb64(t, header))["alg"]; alg != RS256 {
		t.Errorf("signed with %v", alg)
	}
}

// TestParseKeyRefuses what a store must not hold: the algorithm never comes from anywhere but the key.
func TestParseKeyRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	enc := func(v int, alg string, key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(stored{V: v, Alg: alg, PKCS8: der})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := parseKey(1, enc(1, ES256, p256)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "not JSON": []byte("x"), "no key": []byte(`{"v":1,"alg":"ES256"}`),
		"another version": enc(2, ES256, p256), "RS256 with an EC key": enc(1, RS256, p256), "HS256": enc(1, "HS256", p256),
		"P-384": enc(1, ES256, p384), "ES256 with an RSA key": enc(1, ES256, long), "short RSA": enc(1, RS256, short),
	} {
		if _, err := parseKey(1, b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestHandler(t *testing.T) {
	for issuer, prefix := range map[string]string{"https://broker.example": "", "https://broker.example/claviger/eu": "/claviger/eu"} {
		s := newSource(t, Config{Issuer: issuer})
		for _, path := range []string{prefix + discoveryPath, prefix + keysPath} {
			for method, code := range map[string]int{
				"GET": 200, "HEAD": 200, "POST": 405, "PUT": 405, "DELETE": 405, "OPTIONS": 405, "PATCH": 405, "TRACE": 405, "CONNECT": 405, "get": 405,
			} {
				w := get(t, s, method, path)
				if w.Code != code {
					t.Errorf("%s %s: %d, want %d", method, path, w.Code, code)
				}
				if code == 405 && w.Header().Get("Allow") != "GET, HEAD" {
					t.Errorf("%s %s: Allow %q", method, path, w.Header().Get("Allow"))
				}
				if code == 200 && (w.Header().Get("Cache-Control") != "public, max-age=300" || w.Header().Get("Content-Type") != "application/json") {
					t.Errorf("%s %s: headers %v", method, path, w.Header())
				}
			}
		}
		outside := []string{"/other" + keysPath}
		if prefix != "" {
			outside = append(outside, keysPath, discoveryPath)
		}
		for _, path := range append(outside, "/", prefix+"/", prefix+"/.well-known/", prefix+keysPath+"/", prefix+"/x/.."+keysPath, prefix+"//.well-known/jwks.json", prefix+"/.well-known%2fjwks.json", prefix+"/.well-known/JWKS.json") {
			if w := get(t, s, "GET", path); w.Code != http.StatusNotFound {
				t.Errorf("%s: %d", path, w.Code)
			}
		}
		want := map[string]any{
			"issuer": issuer, "jwks_uri": issuer + "/.well-known/jwks.json",
			"response_types_supported": []any{"id_token"}, "subject_types_supported": []any{"public"},
			"id_token_signing_alg_values_supported": []any{"ES256"},
			"claims_supported":                      []any{"iss", "sub", "aud", "iat", "exp", "jti", "cnf", "eat_profile", "submods", "claviger"},
		}
		if d := cmp.Diff(want, decode(t, get(t, s, "GET", prefix+discoveryPath).Body.Bytes())); d != "" {
			t.Error(d)
		}
	}
	// Over a real connection HEAD has no body.
	s := newSource(t, Config{})
	srv := httptest.NewServer(s)
	defer srv.Close()
	resp, err := srv.Client().Head(srv.URL + keysPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.ContentLength <= 0 {
		t.Errorf("HEAD: %s, length %d", resp.Status, resp.ContentLength)
	}
}
