package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"testing"
)

func transcript() Transcript {
	return Transcript{
		Nonce: []byte("nonce"), BrokerID: [32]byte{1}, KeyAlgorithm: "alg", PublicKey: []byte("key"),
		OfferedSuites: []string{"alg", "other"}, Resources: []string{"a", "b/c"},
	}
}

// TestDigestFollowsSpecification builds the bytes that proto/README.md
// describes by hand, without the code under test.
func TestDigestFollowsSpecification(t *testing.T) {
	lp := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	cat := bytes.Join
	req := sha256.Sum256(cat([][]byte{[]byte("claviger/v1/request"), lp(cat([][]byte{lp([]byte("a")), lp([]byte("b/c"))}, nil))}, nil))
	id := [32]byte{1}
	msg := cat([][]byte{
		[]byte("claviger/v1/binding"), lp([]byte("nonce")), lp(id[:]), lp([]byte("alg")), lp([]byte("key")),
		lp(cat([][]byte{lp([]byte("alg")), lp([]byte("other"))}, nil)), lp(req[:]),
	}, nil)
	if got, want := transcript().Digest64(), sha512.Sum512(msg); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
	if got, want := transcript().Digest48(), sha512.Sum384(msg); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
	if got, want := transcript().Digest32(), sha256.Sum256(msg); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestEveryFieldIsBound: change any one thing and the evidence is for another request.
func TestEveryFieldIsBound(t *testing.T) {
	want := transcript().Digest64()
	for name, change := range map[string]func(*Transcript){
		"nonce":                 func(t *Transcript) { t.Nonce = []byte("Nonce") },
		"broker":                func(t *Transcript) { t.BrokerID[31] = 1 },
		"algorithm":             func(t *Transcript) { t.KeyAlgorithm = "other" },
		"key":                   func(t *Transcript) { t.PublicKey = []byte("kez") },
		"suite taken away":      func(t *Transcript) { t.OfferedSuites = t.OfferedSuites[:1] },
		"order of suites":       func(t *Transcript) { t.OfferedSuites = []string{"other", "alg"} },
		"resource added":        func(t *Transcript) { t.Resources = append(t.Resources, "d") },
		"order of resources":    func(t *Transcript) { t.Resources = []string{"b/c", "a"} },
		"boundary of resources": func(t *Transcript) { t.Resources = []string{"ab", "/c"} },
		"boundary of fields":    func(t *Transcript) { t.KeyAlgorithm, t.PublicKey = "algk", []byte("ey") },
	} {
		tr := transcript()
		change(&tr)
		if tr.Digest64() == want {
			t.Errorf("%s is not bound", name)
		}
	}
}

// TestWholeFollowsSpecification builds the bytes that proto/README.md describes by hand.
func TestWholeFollowsSpecification(t *testing.T) {
	lp := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tr, evidence := transcript(), []Evidence{{Type: "a", Report: []byte("r"), Endorsements: []byte("e"), EventLog: []byte("l")}, {Type: "b", Report: []byte("s")}}
	bound := tr.Digest32()
	first := sha256.Sum256(cat([]byte("claviger/v1/evidence"), lp([]byte("a")), lp([]byte("r")), lp([]byte("e")), lp([]byte("l"))))
	second := sha256.Sum256(cat([]byte("claviger/v1/evidence"), lp([]byte("b")), lp([]byte("s")), lp(nil), lp(nil)))
	want := sha256.Sum256(cat([]byte("claviger/v1/whole"), lp([]byte("watch")), lp(bound[:]), lp(cat(lp(first[:]), lp(second[:])))))
	if got := tr.Whole(PurposeWatch, evidence...); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
	tr.Devices = [][32]byte{second} // which follow in the list
	if got := tr.Whole(PurposeWatch, evidence...); got != want {
		t.Errorf("with devices: got %x, want %x", got, want)
	}
}

func TestBindingCheck(t *testing.T) {
	d := transcript().Digest64()
	if ok, err := BindTo(transcript()).Check(d[:]); !ok || err != nil {
		t.Errorf("right digest: %v %v", ok, err)
	}
	d32 := transcript().Digest32()
	if ok, err := BindTo(transcript()).Check(append(d32[:], make([]byte, 32)...)); ok || err == nil {
		t.Error("a truncated digest passed for the whole")
	}
	if ok, err := (Binding{}).Check(d[:]); ok || err == nil {
		t.Error("the zero binding matched")
	}
	if ok, err := (Binding{}).Check(nil); ok || err == nil {
		t.Error("the zero binding matched an empty field")
	}
	if ok, err := Unbound().Check(d[:]); ok || err != nil {
		t.Errorf("unbound: %v %v", ok, err)
	}
	if ok, err := BindExact(d[:]).Check(d[:63]); ok || err == nil {
		t.Error("a prefix matched")
	}
}
