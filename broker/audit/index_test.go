package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/claviger/claviger/broker"
)

var day = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// fleet makes records of releases and denials to some machines, with devices, sessions and withheld releases.
func fleet(n int) []broker.Record {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(kind string, of int) string { return fmt.Sprintf("%s%02x", kind, r.IntN(of)) }
	var out []broker.Record
	for i := range n {
		rec := broker.Record{
			Version: 1, ID: fmt.Sprintf("id-%d", i), Time: day.Add(time.Duration(i) * time.Minute), Outcome: broker.Released, EvidenceType: "sev-snp",
			HardwareModel: "Milan", TCBStatus: "UpToDate", ChipID: pick("AB", 5), HostData: pick("0f", 3), PolicyDigest: "sha256:" + pick("0", 2),
			Measurements: []string{"measurement=" + pick("CC", 4)}, Advisories: []string{"INTEL-SA-" + pick("0", 2)},
			Resources: []broker.RecordResource{{Path: "disks/" + pick("vm", 6), Version: pick("", 3), Allow: true}},
		}
		switch r.IntN(8) {
		case 0:
			rec.Outcome = broker.Denied
			rec.Resources[0].Version = ""
		case 1:
			rec.Devices, rec.DeviceTCB = []string{"nvidia-gpu=GPU-" + pick("", 3)}, []string{"GH100/OutOfDate"}
			rec.Measurements = append(rec.Measurements, "nvidia-gpu/driver=dd")
		case 2:
			rec.Session = "SESSION-" + pick("", 4)
			rec.Resources[0].Unchanged = true
			rec.Resources = append(rec.Resources, broker.RecordResource{Path: "db/" + pick("", 2), Version: "7", Allow: true})
		case 3:
			if i > 0 && out[i-1].Outcome == broker.Released {
				rec.Outcome, rec.Withholds = broker.Failed, out[i-1].ID
			}
		}
		out = append(out, rec)
	}
	return out
}

// exposure is the blast radius worked out from the records themselves.
func exposure(records []broker.Record, s broker.Subject, since time.Time) broker.Exposure {
	withheld := map[string]bool{}
	for _, r := range records {
		withheld[r.Withholds] = true
	}
	out := broker.Exposure{Log: "test"}
	for _, r := range records {
		if withheld[r.ID] {
			r.Outcome = broker.Failed
		}
		out.Add(r, s, since)
	}
	return out
}

func openTestLog(t *testing.T, dir string) *Log {
	t.Helper()
	signer, verifier, err := GenerateKey(testRandom{}, "test")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), dir, signer, verifier)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) })
	return l
}

// testRandom makes the same key each time.
type testRandom struct{}

func (testRandom) Read(b []byte) (int, error) { return copy(b, bytes.Repeat([]byte{7}, len(b))), nil }

// fill appends records in order. Many at a time share a batch.
func fill(t *testing.T, l *Log, records []broker.Record) {
	t.Helper()
	for chunk := range slices.Chunk(records, 256) {
		var wg sync.WaitGroup
		for _, r := range chunk {
			wg.Go(func() {
				if _, err := l.Append(context.Background(), r); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if err := l.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// logged are the log's records in its order.
func logged(t *testing.T, l *Log) []broker.Record {
	t.Helper()
	var out []broker.Record
	for e, err := range l.Entries(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, decode(t, e.Data))
	}
	return out
}

func checkIndex(t *testing.T, x *Index, records []broker.Record) {
	t.Helper()
	if err := x.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	subjects := map[broker.Subject]bool{
		{Kind: broker.RevokeChip, Value: "none"}: true, {Kind: broker.RevokeChip, Value: "GPU-00"}: true, {Kind: broker.RevokeTCB, Value: "gh100/outofdate"}: true,
		{Kind: broker.RevokeSecretVersion, Value: "none"}: true, {Kind: broker.RevokeResource, Value: "none"}: true, {Kind: broker.RevokeSession, Value: "none"}: true,
	}
	for _, r := range records {
		for _, s := range r.Subjects() {
			subjects[s] = true
		}
	}
	for s := range subjects {
		for _, since := range []time.Time{{}, day.Add(time.Duration(len(records)/2) * time.Minute)} {
			got, err := x.Exposure(t.Context(), s, since)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(exposure(records, s, since), got); d != "" {
				t.Fatalf("%s since %s: %s", s, since, d)
			}
		}
		seen, err := x.Seen(t.Context(), broker.Subject{Kind: s.Kind, Value: strings.ToUpper(s.Value)})
		if err != nil {
			t.Fatal(err)
		}
		if known := s.Value != "none" && s.Value != "GPU-00"; known && !slices.ContainsFunc(seen, func(v string) bool { return strings.EqualFold(v, s.Value) }) {
			t.Errorf("%s was not seen, but %v", s, seen)
		}
	}
}

// TestIndex: the index says what the log says, of everything that can be revoked; also as the log
// grows, after a restart, after damage, and if another log takes the place of this one.
func TestIndex(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "index")
	l := openTestLog(t, dir)
	open := func(l *Log) *Index {
		x, err := OpenIndex(l.Reader, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return x
	}
	x := open(l)
	if err := x.CatchUp(t.Context()); err != nil { // a log without entries
		t.Fatal(err)
	}
	all := fleet(900)
	fill(t, l, all[:500])
	checkIndex(t, x, logged(t, l))
	fill(t, l, all[500:])
	records := logged(t, l)
	checkIndex(t, x, records)
	checkIndex(t, open(l), records)

	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{
		"cut off": whole[:len(whole)-5], "cut in the middle": whole[:len(whole)/2], "empty": {}, "header only": whole[:40], "junk": bytes.Repeat([]byte{0xff}, 3000),
		"a bit": func() []byte { b := bytes.Clone(whole); b[len(b)/3] ^= 4; return b }(), "more": append(bytes.Clone(whole), whole[200:900]...),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			checkIndex(t, open(l), records)
		})
	}
	t.Run("another log", func(t *testing.T) {
		other := openTestLog(t, t.TempDir())
		fill(t, other, all[300:400])
		checkIndex(t, open(other), logged(t, other))
		longer := openTestLog(t, t.TempDir())
		fill(t, longer, all[:800])
		checkIndex(t, open(longer), logged(t, longer))
	})
}

// FuzzIndex: no file makes the index panic, or take more memory than the file is long.
func FuzzIndex(f *testing.F) {
	dir := f.TempDir()
	signer, verifier, err := GenerateKey(testRandom{}, "test")
	if err != nil {
		f.Fatal(err)
	}
	_ = signer
	r, err := NewReader(dir, verifier)
	if err != nil {
		f.Fatal(err)
	}
	x := &Index{log: r}
	x.reset()
	good := append([]byte(x.header()), make([]byte, 8)...)
	for _, rec := range fleet(3) {
		body, fr, err := x.frameOf(encode(f, rec))
		if err != nil {
			f.Fatal(err)
		}
		good = appendFrame(good, body)
		x.note(fr)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "index")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := OpenIndex(r, path)
		if err != nil {
			return
		}
		defer x.Close()
		for _, s := range []broker.Subject{{Kind: broker.RevokeChip, Value: "ab00"}, {Kind: broker.RevokeSession, Value: "S"}, {Kind: broker.RevokeSecretVersion, Value: "a@1"}} {
			if _, err := x.Exposure(t.Context(), s, time.Time{}); err != nil {
				t.Fatal("opened, but cannot be read: ", err)
			}
		}
	})
}

// TestPrune: the content of old entries goes, and everything is proven as before.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	x, err := OpenIndex(l.Reader, filepath.Join(t.TempDir(), "index"))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	fill(t, l, fleet(900))
	records := logged(t, l)
	checkIndex(t, x, records)
	cut, archive := day.Add(600*time.Minute), t.TempDir()
	dry, err := l.Prune(t.Context(), cut, "", true)
	if err != nil || dry.Entries != 512 {
		t.Fatalf("%+v, %v", dry, err)
	}
	if n, err := l.Verify(t.Context()); n != 900 || err != nil {
		t.Fatal("a dry run removed something: ", n, err)
	}
	did, err := l.Prune(t.Context(), cut, archive, false)
	if err != nil || did != dry {
		t.Fatalf("%+v, %v, want %+v", did, err, dry)
	}
	if again, err := l.Prune(t.Context(), cut, archive, false); err != nil || again.Entries != 0 || again.First != 512 {
		t.Fatalf("%+v, %v", again, err)
	}
	if n, err := l.Verify(t.Context()); n != 900 || err != nil {
		t.Fatal(n, err)
	}
	for _, i := range []uint64{0, 255, 256, 511, 512, 899} {
		p, err := l.Prove(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyProof(p, l.VerifierKey()); err != nil {
			t.Error(i, err)
		}
	}
	for _, err := range l.Entries(t.Context(), 0) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("entry 0: %v", err)
		}
		break
	}
	checkIndex(t, x, records) // what was indexed is still known
	fill(t, l, fleet(20))
	if n, err := l.Verify(t.Context()); n != 920 || err != nil {
		t.Error("after more entries: ", n, err)
	}
	// An index that is made now does not know them, and says so.
	late, err := OpenIndex(l.Reader, filepath.Join(t.TempDir(), "index"))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := late.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := late.Exposure(t.Context(), broker.Subject{Kind: broker.RevokeTCB, Value: "Milan/UpToDate"}, time.Time{}); err != nil || e.Pruned != 512 || e.Entries != 408 {
		t.Errorf("%+v, %v", e, err)
	}
	// What was not pruned and is missing is damage, and so is a tile that is not what was signed.
	bundle := filepath.Join(dir, "tile", "entries", "002")
	b, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(bundle); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Verify(t.Context()); err == nil {
		t.Error("a bundle that is missing is not noticed")
	}
	if err := os.WriteFile(bundle, b, 0o644); err != nil {
		t.Fatal(err)
	}
	tile := filepath.Join(dir, "tile", "0", "000")
	b, err = os.ReadFile(tile)
	if err != nil {
		t.Fatal(err)
	}
	b[17] ^= 1
	if err := os.WriteFile(tile, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Verify(t.Context()); err == nil {
		t.Error("a changed hash of a pruned entry is not noticed")
	}
	b[17] ^= 1
	if err := os.WriteFile(tile, b, 0o644); err != nil {
		t.Fatal(err)
	}
	// Put back from the archive, the log is what it was.
	for _, name := range []string{"000", "001"} {
		b, err := os.ReadFile(filepath.Join(archive, "tile", "entries", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "tile", "entries", name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, prunedFile)); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Verify(t.Context()); n != 920 || err != nil {
		t.Error(n, err)
	}
}

// BenchmarkExposure is the blast radius of a chip in a log of a million entries.
func BenchmarkExposure(b *testing.B) {
	dir := b.TempDir()
	_, verifier, err := GenerateKey(testRandom{}, "test")
	if err != nil {
		b.Fatal(err)
	}
	r, err := NewReader(dir, verifier)
	if err != nil {
		b.Fatal(err)
	}
	x := &Index{log: r}
	x.reset()
	out := append([]byte(x.header()), make([]byte, 8)...)
	records := fleet(1000)
	for i := range 1_000_000 {
		rec := records[i%1000]
		rec.ID = fmt.Sprintf("%026d", i)
		rec.ChipID = fmt.Sprintf("%0128x", i%20_000)
		rec.Resources = []broker.RecordResource{{Path: fmt.Sprintf("disks/vm-%d", i%20_000), Version: "1", Allow: true}}
		body, f, err := x.frameOf(encode(b, rec))
		if err != nil {
			b.Fatal(err)
		}
		out = appendFrame(out, body)
		x.note(f)
	}
	path := filepath.Join(dir, "index")
	if err := os.WriteFile(path, out, 0o600); err != nil {
		b.Fatal(err)
	}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			x, err := OpenIndex(r, path)
			if err != nil {
				b.Fatal(err)
			}
			x.Close()
		}
	})
	idx, err := OpenIndex(r, path)
	if err != nil {
		b.Fatal(err)
	}
	defer idx.Close()
	b.Run("chip", func(b *testing.B) {
		for b.Loop() {
			e, err := idx.Exposure(b.Context(), broker.Subject{Kind: broker.RevokeChip, Value: fmt.Sprintf("%0128x", 77)}, time.Time{})
			if err != nil || e.Entries != 1_000_000 || e.Releases == 0 {
				b.Fatal(e, err)
			}
		}
		b.ReportMetric(float64(len(out))/1e6, "bytes/entry")
	})
}

func encode(t testing.TB, r broker.Record) []byte {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode(t testing.TB, b []byte) broker.Record {
	t.Helper()
	var r broker.Record
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPruneOvertakesIndex: an index that was away while entries went which it does not have goes on
// with what is left, and says what it does not know.
func TestPruneOvertakesIndex(t *testing.T) {
	l := openTestLog(t, t.TempDir())
	x, err := OpenIndex(l.Reader, filepath.Join(t.TempDir(), "index"))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	fill(t, l, fleet(100))
	if err := x.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, l, fleet(900)[100:])
	did, err := l.Prune(t.Context(), day.Add(600*time.Minute), "", false)
	if err != nil || did.First < 256 {
		t.Fatalf("%+v, %v", did, err)
	}
	if err := x.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := x.Exposure(t.Context(), broker.Subject{Kind: broker.RevokeTCB, Value: "Milan/UpToDate"}, time.Time{})
	if err != nil || e.Pruned != did.First || e.Entries != 900-did.First {
		t.Errorf("%+v, %v", e, err)
	}
}
