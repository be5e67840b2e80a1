package attest

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write proto/testdata/binding.json anew")

const vectorFile = "../../proto/testdata/binding.json"

// bindingVector is one published test vector; bytes are lower-case hex.
type bindingVector struct {
	Name          string   `json:"name"`
	Nonce         string   `json:"nonce"`
	BrokerID      string   `json:"broker_id"`
	KeyAlgorithm  string   `json:"key_algorithm"`
	PublicKey     string   `json:"public_key"`
	OfferedSuites []string `json:"offered_suites"`
	Resources     []string `json:"resources"`
	Inputs        []string `json:"inputs,omitempty"`
	Devices       []string `json:"devices,omitempty"` // digests of their evidence
	RequestDigest string   `json:"request_digest"`
	Digest64      string   `json:"digest64_sha512"`
	Digest48      string   `json:"digest48_sha384"`
	Digest32      string   `json:"digest32_sha256"`
}

func vectors() []bindingVector {
	seq := func(n int, from byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = from + byte(i)
		}
		return b
	}
	id := [32]byte(seq(32, 0x40))
	cases := []struct {
		name string
		t    Transcript
	}{
		{"one resource, hybrid", Transcript{seq(57, 0), id, "HPKE-MLKEM768-X25519-KE", seq(1216, 1), []string{"HPKE-MLKEM768-X25519-KE"}, []string{"db/orders"}, nil, nil}},
		{"two resources, two suites", Transcript{seq(57, 9), id, "ECDH-ES+A256KW/X25519", seq(32, 7), []string{"HPKE-MLKEM768-X25519-KE", "ECDH-ES+A256KW/X25519"}, []string{"disks/vm-1", "db/orders"}, nil, nil}},
		{"two resources in the other order", Transcript{seq(57, 9), id, "ECDH-ES+A256KW/X25519", seq(32, 7), []string{"HPKE-MLKEM768-X25519-KE", "ECDH-ES+A256KW/X25519"}, []string{"db/orders", "disks/vm-1"}, nil, nil}},
		{"everything empty", Transcript{}},
		{"an input with the second resource", Transcript{seq(57, 9), id, "ECDH-ES+A256KW/X25519", seq(32, 7), []string{"ECDH-ES+A256KW/X25519"}, []string{"db/orders", "certs/vm-1"}, [][]byte{{}, seq(20, 3)}, nil}},
		{"two devices beside the first", Transcript{seq(57, 9), id, "ECDH-ES+A256KW/X25519", seq(32, 7), []string{"ECDH-ES+A256KW/X25519"}, []string{"db/orders"}, nil, [][32]byte{
			Evidence{Type: TypeTPM, Report: seq(40, 1), EventLog: seq(5, 2)}.Digest(), Evidence{Type: TypeSNP, Report: seq(30, 5), Endorsements: seq(3, 0)}.Digest()}}},
	}
	var out []bindingVector
	for _, c := range cases {
		d64, d48, d32, rd := c.t.Digest64(), c.t.Digest48(), c.t.Digest32(), RequestDigest(c.t.Resources, c.t.Inputs)
		var inputs []string
		for _, in := range c.t.Inputs {
			inputs = append(inputs, hex.EncodeToString(in))
		}
		var devices []string
		for _, d := range c.t.Devices {
			devices = append(devices, hex.EncodeToString(d[:]))
		}
		out = append(out, bindingVector{
			c.name, hex.EncodeToString(c.t.Nonce), hex.EncodeToString(c.t.BrokerID[:]), c.t.KeyAlgorithm, hex.EncodeToString(c.t.PublicKey),
			c.t.OfferedSuites, c.t.Resources, inputs, devices, hex.EncodeToString(rd[:]), hex.EncodeToString(d64[:]), hex.EncodeToString(d48[:]), hex.EncodeToString(d32[:]),
		})
	}
	return out
}

// TestVectors regenerates the published vectors and compares.
func TestVectors(t *testing.T) {
	got := vectors()
	if *update {
		b, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var want []bindingVector
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
