package arm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLifecycle: the states of RFC 9783 §4.3.1, and nothing between them.
func TestLifecycle(t *testing.T) {
	for n, want := range map[uint64]Lifecycle{
		0: Unknown, 0xff: Unknown, 0x1000: AssemblyAndTest, 0x2001: Provisioning, 0x3000: Secured, 0x30ff: Secured,
		0x4000: NonRoTDebug, 0x5000: RecoverableDebug, 0x60ff: Decommissioned,
	} {
		if got, err := ParseLifecycle(&n); got != want || err != nil {
			t.Errorf("%#x: %q, %v, want %q", n, got, err, want)
		}
	}
	for _, n := range []uint64{0x100, 0x3100, 0x3f00, 0x6100, 0x7000, 0x13000, 1<<64 - 1, 1 << 44} {
		if got, err := ParseLifecycle(&n); err == nil {
			t.Errorf("%#x: %q, want an error", n, got)
		}
	}
	if _, err := ParseLifecycle(nil); err == nil {
		t.Error("a missing state was read")
	}
}

func TestIdentity(t *testing.T) {
	good := Identity{append([]byte{1}, make([]byte, 32)...), make([]byte, 32)}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, id := range map[string]Identity{
		"zero":                   {},
		"another type of UEID":   {append([]byte{2}, make([]byte, 32)...), make([]byte, 32)},
		"short instance":         {good.Instance[:32], good.Implementation},
		"long instance":          {append(good.Instance, 0), good.Implementation},
		"short implementation":   {good.Instance, good.Implementation[:31]},
		"long implementation":    {good.Instance, make([]byte, 33)},
		"missing implementation": {good.Instance, nil},
	} {
		if id.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func text(s string) *string { return &s }

func TestComponents(t *testing.T) {
	h := bytes.Repeat([]byte{7}, 32)
	c := func(typ *string) Component { return Component{Type: typ, Value: h, SignerID: h} }
	out, err := Components("p_", []Component{c(text("BL")), c(text("bl")), c(text("bl_2")), c(nil), c(nil), c(text("AP BL1-ü"))})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range out {
		names = append(names, s.Name)
	}
	want := []string{"p_bl", "p_bl_2", "p_bl_2_2", "p_component", "p_component_2", "p_ap_bl1__"}
	if !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	if out[0].Value != hex.EncodeToString(h) || out[0].Type != "BL" || out[3].Type != "" {
		t.Errorf("components %+v", out)
	}
	for name, in := range map[string][]Component{
		"none":          {},
		"no value":      {{SignerID: h}},
		"short value":   {{Value: h[:31], SignerID: h}},
		"no signer":     {{Value: h}},
		"long signer":   {{Value: h, SignerID: make([]byte, 65)}},
		"empty type":    {c(text(""))},
		"endless type":  {c(text(strings.Repeat("a", maxText+1)))},
		"type of bytes": {c(text("\xff"))},
	} {
		if _, err := Components("", in); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func newKey(t *testing.T) *ecdsa.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey
}

func encodePEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestFind: an instance with a key of its own is not spoken for by its make.
func TestFind(t *testing.T) {
	instance, other := bytes.Repeat([]byte{1}, 33), append(bytes.Repeat([]byte{1}, 32), 2)
	x, y := bytes.Repeat([]byte{8}, 32), bytes.Repeat([]byte{9}, 32)
	own, exact, class, test := newKey(t), newKey(t), newKey(t), newKey(t)
	third := append(bytes.Repeat([]byte{1}, 32), 3)
	e, err := NewEndorsements([]Endorsement{{instance, nil, own}, {nil, x, class}, {other, x, exact}}, []Endorsement{{third, y, test}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		id   Identity
		want *ecdsa.PublicKey
	}{
		{Identity{instance, x}, own}, {Identity{instance, y}, own}, {Identity{other, x}, exact}, {Identity{other, y}, nil},
		{Identity{third, x}, class}, {Identity{third, y}, test}, {Identity{}, nil},
	} {
		k, ok := e.Find(tc.id)
		if ok != (tc.want != nil) || (ok && !tc.want.Equal(k.Public)) {
			t.Errorf("%x: %v, want %v", tc.id, k, tc.want)
		}
		if k.Simulated != (tc.want == test) {
			t.Errorf("%x: simulated %v", tc.id, k.Simulated)
		}
	}
	if _, ok := (Endorsements{}).Find(Identity{instance, x}); ok || !(Endorsements{}).Empty() || e.Empty() {
		t.Error("the zero value endorses something")
	}
}

func TestParseEndorsements(t *testing.T) {
	instance, implementation := "01"+strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	key := encodePEM(t, newKey(t))
	list := func(entries ...map[string]string) []byte {
		b, err := json.Marshal(entries)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	both := map[string]string{"instance_id": instance, "implementation_id": implementation, "key": key}
	got, err := ParseEndorsements(list(both, map[string]string{"implementation_id": implementation, "key": key}))
	if err != nil || len(got) != 2 || hex.EncodeToString(got[0].InstanceID) != instance || len(got[1].InstanceID) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	_, public, err2 := ed25519.GenerateKey(rand.Reader)
	if err2 != nil {
		t.Fatal(err2)
	}
	for want, b := range map[string][]byte{
		"[0].instance_id":             list(map[string]string{"instance_id": instance[2:], "key": key}),
		"[1].implementation_id":       list(both, map[string]string{"implementation_id": "xy", "key": key}),
		"[0].key: not one public":     list(map[string]string{"instance_id": instance}),
		"[0].key: not one":            list(map[string]string{"instance_id": instance, "key": key + key}),
		"[0].key: asn1":               list(map[string]string{"instance_id": instance, "key": strings.ReplaceAll(key, "MFkw", "MFkx")}),
		"[0].key: its key is Ed25519": list(map[string]string{"instance_id": instance, "key": encodePEM(t, public.Public())}),
		"[0]: neither":                list(map[string]string{"key": key}),
		"[1]: a second key":           list(both, both),
		`"pkey" is unknown`:           []byte(`[{"pkey": ""}]`),
		`"Key" is not "key"`:          []byte(`[{"Key": ""}]`),
		`"key" occurs twice`:          []byte(`[{"key": "", "k\u0065y": ""}]`),
		"after top-level value":       append(list(both), "[]"...),
		"cannot unmarshal":            []byte(`{}`),
	} {
		if _, err := ParseEndorsements(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if got, err := ParseEndorsements([]byte("[]")); len(got) != 0 || err != nil {
		t.Errorf("an empty list: %v, %v", got, err)
	}
}

// TestPublished: keys that anybody can sign with are told, whoever endorses them.
func TestPublished(t *testing.T) {
	for _, path := range []string{"psa/psatoken/tf-m/public.pem", "cca/ccatoken/tf-rmm/cca_platform.pub"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "evidence", path))
		if os.IsNotExist(err) {
			t.Skipf("no shared evidence: %v", err)
		} else if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		instance := bytes.Repeat([]byte{1}, 33)
		e, err := NewEndorsements([]Endorsement{{InstanceID: instance, Key: key}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if k, _ := e.Find(Identity{Instance: instance}); !k.Simulated || k.Note == "" {
			t.Errorf("%s: %+v", path, k)
		}
	}
}
