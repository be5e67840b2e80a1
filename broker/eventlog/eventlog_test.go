package eventlog

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// entry makes a TCG_PCR_EVENT2 with one SHA-384 digest.
func entry(index, typ uint32, digest [48]byte, data []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, index)
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint16(b, sha384Bank.alg)
	b = append(b, digest[:]...)
	b = le.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// header makes the first entry, with vendor information.
func header(vendor string) []byte {
	le := binary.LittleEndian
	e := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	e = le.AppendUint32(e, 1)
	e = le.AppendUint16(e, sha384Bank.alg)
	e = le.AppendUint16(e, 48)
	e = append(e, byte(len(vendor)))
	e = append(e, vendor...)
	b := le.AppendUint32(nil, 1)
	b = le.AppendUint32(b, EVNoAction)
	b = append(b, make([]byte, 20)...)
	b = le.AppendUint32(b, uint32(len(e)))
	return append(b, e...)
}

func measured(index, typ uint32, data string) []byte {
	return entry(index, typ, sha512.Sum384([]byte(data)), []byte(data))
}

func TestReplay(t *testing.T) {
	d1, d2 := sha512.Sum384([]byte("one")), sha512.Sum384([]byte("two"))
	// By the definition of an extend: H(old ‖ digest), from zeros.
	first := sha512.Sum384(append(make([]byte, 48), d1[:]...))
	want := sha512.Sum384(append(first[:], d2[:]...))
	events := bytes.Join([][]byte{
		header("td-shim"), measured(2, 1, "one"), measured(0, EVNoAction, "noise"), measured(2, EVNoAction, "noise"), measured(2, 1, "two"),
	}, nil)
	for name, tail := range map[string][]byte{"none": nil, "0xff": bytes.Repeat([]byte{0xff}, 900), "zeros": make([]byte, 900), "short": {0xff, 0xff}} {
		log, err := ParseCC(append(bytes.Clone(events), tail...))
		if err != nil {
			t.Fatalf("padding %s: %v", name, err)
		}
		rtmr, touched := log.ReplayRTMRs()
		if rtmr[1] != want || rtmr[0] != [48]byte{} || touched != [4]bool{1: true} {
			t.Errorf("padding %s: %x, touched %v", name, rtmr, touched)
		}
	}
}

func TestMalformed(t *testing.T) {
	good := append(header(""), measured(1, 1, "x")...)
	sm3 := bytes.Replace(header(""), []byte{0x0c, 0, 48, 0}, []byte{0x12, 0, 32, 0}, 1)
	for name, b := range map[string][]byte{
		"empty":               nil,
		"only padding":        bytes.Repeat([]byte{0xff}, 100),
		"junk after events":   append(bytes.Clone(good), 1, 2, 3),
		"register 5":          append(bytes.Clone(good), measured(5, 1, "x")...),
		"MRTD extended":       append(bytes.Clone(good), measured(0, 1, "x")...),
		"SM3 only":            sm3,
		"not crypto-agile":    bytes.Replace(good, []byte("Event03"), []byte("Event02"), 1),
		"event of 4 GiB":      append(bytes.Clone(good), entry(1, 1, [48]byte{}, nil)[:58]...),
		"too large":           make([]byte, MaxSize+1),
		"too many events":     append(header(""), bytes.Repeat(measured(1, 1, ""), MaxEvents+1)...),
		"unknown algorithm":   bytes.Replace(good, append([]byte{1, 0, 0, 0}, 0x0c, 0), append([]byte{1, 0, 0, 0}, 0x0b, 0), 2),
		"no SHA-384 digest":   append(bytes.Clone(good), 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		"padding then events": append(append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 20)...), measured(1, 1, "x")...),
	} {
		if _, err := ParseCC(b); err == nil {
			t.Errorf("%s parses", name)
		}
	}
	for n := range good {
		if n == len(header("")) {
			continue // a log without events
		}
		if _, err := ParseCC(good[:n]); err == nil {
			t.Errorf("log cut at %d parses", n)
		}
	}
}

// TestContent: only what the digest covers is ever shown.
func TestContent(t *testing.T) {
	h := func(s string) []byte { return sha384Bank.sum([]byte(s)) }
	variable := append(make([]byte, 16), 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 'S', 0, 'B', 0, 'a', 'b', 'c')
	for name, tc := range map[string]struct {
		e    Event
		text string
		ok   bool
	}{
		"whole":           {Event{1, 1, h("hello"), []byte("hello"), sha384Bank}, "hello", true},
		"final NUL":       {Event{1, 1, h("hello"), []byte("hello\x00"), sha384Bank}, "hello", true},
		"NUL measured":    {Event{1, 1, h("hello\x00"), []byte("hello\x00"), sha384Bank}, "hello", true},
		"another text":    {Event{1, 1, h("hello"), []byte("hullo"), sha384Bank}, "", false},
		"grub":            {Event{3, EVIPL, h("linux /x"), []byte("grub_cmd: linux /x\x00"), sha384Bank}, "linux /x", true},
		"forged label":    {Event{3, 1, h("linux /x"), []byte("grub_cmd: linux /x\x00"), sha384Bank}, "", false},
		"variable's data": {Event{1, 1, h("abc"), variable, sha384Bank}, "abc", true},
		"no action":       {Event{1, EVNoAction, h("hello"), []byte("hello"), sha384Bank}, "", false},
		"not printable":   {Event{1, 1, h("\x1b[2Jhello"), []byte("\x1b[2Jhello"), sha384Bank}, "", false},
		"UTF-16":          {Event{3, EVIPL, h("r\x00o\x00\x00\x00"), []byte("r\x00o\x00\x00\x00"), sha384Bank}, "ro", true},
		"UTF-16 escape":   {Event{3, EVIPL, h("\x1b\x00o\x00"), []byte("\x1b\x00o\x00"), sha384Bank}, "", false},
		"huge variable":   {Event{1, 1, h(""), append(make([]byte, 16), bytes.Repeat([]byte{0xff}, 16)...), sha384Bank}, "", false},
	} {
		if text, ok := tc.e.Text(); text != tc.text || ok != tc.ok {
			t.Errorf("%s: %q, %v, want %q, %v", name, text, ok, tc.text, tc.ok)
		}
	}
}

func evidenceDir(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	dir = filepath.Join(dir, "..", "shared", "evidence", "tdx")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no shared evidence: %v", err)
	}
	return dir
}

// TestFieldLogs replays logs of OVMF, td-shim, grub, Google and Alibaba. Expected
// values are beginnings and ends, from the collection's index.
func TestFieldLogs(t *testing.T) {
	dir := evidenceDir(t)
	zero := strings.Repeat("00", 48)
	for file, want := range map[string][4]string{
		"trustee/ccel/CCEL_data":              {"2dc712306a963eadb894ad47dbaa17df44814151555aee11cbb843becca88950ffd079664902e6f22c66f7c8213543f4", "0fa3be56af61208bbd179dc7b124988eb929319154663c539d6f46445ecac2fec287075047ff7bd1922829fec28cd3cf", zero, zero},
		"trustee/ccel/CCEL_data_ovmf":         {"8566f998…e193", "775b9f6b…13c6", "94eaf7a7…f34a", zero},
		"trustee/tdx/CCEL_data_ovmf":          {"8566f998…e193", "775b9f6b…13c6", "94eaf7a7…f34a", zero},
		"trustee/ccel/CCEL_data_grub":         {"cec0a104…bd79", "6c289e0c…b670", "08919d01…d31e", zero},
		"trustee/ccel/CCEL_data_grub_gke":     {"bc994513…544a", "c17cb288…8a7b", "334aeba2…eb6d", zero},
		"trustee/ccel/CCEL_data_gcp":          {"33009807…304f", "204d49f7…1967", zero, zero},
		"trustee/ccel/CCEL_AAEL_alibabacloud": {"b796e1c1…d47c", "3b0b9061…7406", "35f28013…8480", "5e4ecd49d3c7983d6f9ca36755b5cee0b423d7fa8c5a88aeb0681bd4698772bc37b4463dc5f722efe352a66417257dad"},
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		log, err := ParseCC(b)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		rtmr, _ := log.ReplayRTMRs()
		for i, w := range want {
			got := hex.EncodeToString(rtmr[i][:])
			if head, tail, cut := strings.Cut(w, "…"); cut && (!strings.HasPrefix(got, head) || !strings.HasSuffix(got, tail)) || !cut && got != w {
				t.Errorf("%s: RTMR%d %s, want %s", file, i, got, w)
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "trustee/ccel/CCEL_data_csv")); err != nil {
		t.Error(err)
	} else if _, err := ParseCC(b); err == nil {
		t.Error("a log of SM3 digests parses")
	}
	for _, file := range []string{"dstack/ccel.bin", "go-eventlog/ccel/event_log.bin", "go-eventlog/ccel/CCEL_unpadded.data.bin", "go-eventlog/ccel/cos-113-intel-tdx.bin"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCC(b); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestFieldText: what a policy wants to see of real logs can be seen.
func TestFieldText(t *testing.T) {
	dir := evidenceDir(t)
	read := func(file string) *Log {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		log, err := ParseCC(b)
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	var kernel, secureBoot bool
	for _, e := range read("go-eventlog/ccel/cos-113-intel-tdx.bin").Events {
		s, ok := e.Text()
		kernel = kernel || ok && e.Register == 3 && strings.HasPrefix(s, "linux ")
	}
	for _, e := range read("trustee/ccel/CCEL_data_grub").Events {
		v, ok := e.Variable()
		secureBoot = secureBoot || ok && v.GUID == "8be4df61-93ca-11d2-aa0d-00e098032b8c" && v.Name == "SecureBoot" && bytes.Equal(v.Value, []byte{1})
	}
	if !kernel || !secureBoot {
		t.Errorf("kernel command line seen: %v, SecureBoot seen: %v", kernel, secureBoot)
	}
}

func FuzzTPM(f *testing.F) {
	for _, name := range []string{"direct", "grub-sb"} {
		if b, err := os.ReadFile(filepath.Join("../../../shared/evidence/tpm/boot", name, "eventlog.bin")); err == nil {
			f.Add(b)
		}
	}
	f.Add(bytes.Join([][]byte{header("x"), measured(1, 1, "one")}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := ParseTPM(b)
		if err != nil {
			return
		}
		log.ReplayPCRs()
		for _, e := range log.Events {
			if c, ok := e.Content(); ok && !bytes.Equal(sha256Bank.sum(c), e.Digest) {
				t.Fatal("content that the digest does not cover")
			}
			e.Text()
			e.Variable()
		}
	})
}

func FuzzCCEL(f *testing.F) {
	f.Add(bytes.Join([][]byte{header("td-shim"), measured(1, 1, "one"), measured(3, EVIPL, "grub_cmd: x"), {0xff, 0xff}}, nil))
	if out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output(); err == nil {
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "testing/testdata/ccel/ccel_data.dat"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:20000])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := ParseCC(b)
		if err != nil {
			return
		}
		log.ReplayRTMRs()
		for _, e := range log.Events {
			if c, ok := e.Content(); ok && sha512.Sum384(c) != [48]byte(e.Digest) {
				t.Fatal("content that the digest does not cover")
			}
			e.Text()
			e.Variable()
		}
	})
}
