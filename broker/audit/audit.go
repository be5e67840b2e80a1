// Package audit keeps the append-only transparency log (DESIGN §7): Tessera on
// POSIX storage, C2SP checkpoints and tiles. Reader works on the files alone,
// so an auditor needs neither a running broker nor our trust.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"k8s.io/klog/v2"

	"github.com/claviger/claviger/broker"
)

const (
	batchSize = 1024
	batchAge  = 5 * time.Millisecond
	// checkpointInterval bounds how long a receipt's proof takes to be ready.
	checkpointInterval = 200 * time.Millisecond
	appendTimeout      = 10 * time.Second
	maxEntry           = 60 << 10 // Tessera's limit is 64 KiB
)

// ErrNotYet is returned for an index that no published checkpoint covers yet.
var ErrNotYet = errors.New("not yet in a published checkpoint")

// GenerateKey makes a log's signing key in C2SP note form. name is the log's origin.
func GenerateKey(random io.Reader, name string) (signer, verifier string, err error) {
	signer, verifier, err = note.GenerateKey(random, name)
	if err != nil {
		return "", "", fmt.Errorf("generate log key: %w", err)
	}
	return signer, verifier, nil
}

// Log is a broker.Log. One directory has one writer at a time.
type Log struct {
	*Reader
	app      *tessera.Appender
	shutdown func(context.Context) error
	stop     context.CancelFunc
	size     atomic.Uint64 // that the log must have at least, by what was appended
}

// Open opens or creates the log in dir. signer is a note signer key ("PRIVATE+KEY+…").
func Open(ctx context.Context, dir, signer, verifier string) (*Log, error) {
	s, err := note.NewSigner(signer)
	if err != nil {
		return nil, fmt.Errorf("audit log key: %w", err)
	}
	r, err := NewReader(dir, verifier)
	if err != nil {
		return nil, err
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return nil, fmt.Errorf("open audit log in %s: %w", dir, err)
	}
	// The appender lives until Close, whatever becomes of the context that opened it.
	lifetime, stop := context.WithCancel(context.WithoutCancel(ctx))
	app, shutdown, _, err := tessera.NewAppender(lifetime, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(s).WithBatching(batchSize, batchAge).WithCheckpointInterval(checkpointInterval).
		WithCheckpointRepublishInterval(time.Minute).WithGarbageCollectionInterval(time.Minute))
	if err != nil {
		stop()
		return nil, fmt.Errorf("open audit log in %s: %w", dir, err)
	}
	return &Log{Reader: r, app: app, shutdown: shutdown, stop: stop}, nil
}

// Append implements broker.Log: it returns when the entry is durable and integrated.
func (l *Log) Append(ctx context.Context, rec broker.Record) (broker.Position, error) {
	entry, err := json.Marshal(rec)
	if err != nil {
		return broker.Position{}, fmt.Errorf("encode record: %w", err)
	}
	if len(entry) > maxEntry {
		return broker.Position{}, fmt.Errorf("record %s has %d bytes, at most %d fit", rec.ID, len(entry), maxEntry)
	}
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	type result struct {
		index tessera.Index
		err   error
	}
	done := make(chan result, 1)
	future := l.app.Add(context.WithoutCancel(ctx), tessera.NewEntry(entry))
	go func() {
		i, err := future()
		done <- result{i, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return broker.Position{}, fmt.Errorf("append to audit log: %w", r.err)
		}
		for seen := l.size.Load(); seen <= r.index.Index && !l.size.CompareAndSwap(seen, r.index.Index+1); {
			seen = l.size.Load()
		}
		return broker.Position{Origin: l.origin, Index: r.index.Index, LeafHash: [32]byte(rfc6962.DefaultHasher.HashLeaf(entry))}, nil
	case <-ctx.Done():
		return broker.Position{}, fmt.Errorf("append to audit log: %w", ctx.Err())
	}
}

// Settle waits until all that was appended before is in a published
// checkpoint, which is what a Reader sees.
func (l *Log) Settle(ctx context.Context) error {
	want := l.size.Load()
	for want > 0 {
		size, err := l.Size(ctx)
		if err == nil && size >= want {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for a checkpoint: %w", ctx.Err())
		}
	}
	return nil
}

// Close publishes what is outstanding and stops.
func (l *Log) Close(ctx context.Context) error {
	defer l.stop()
	if err := l.shutdown(ctx); err != nil && !strings.Contains(err.Error(), "no such file") { // a log without entries has no checkpoint
		return fmt.Errorf("close audit log: %w", err)
	}
	return nil
}

// Reader reads a log's files.
type Reader struct {
	dir      string
	origin   string
	vkey     string
	verifier note.Verifier
	files    client.FileFetcher
}

// NewReader checks the verifier key ("origin+hash+key").
func NewReader(dir, verifierKey string) (*Reader, error) {
	klog.LogToStderr(false) // Tessera's own logging; its errors come back to us
	klog.SetOutput(io.Discard)
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, fmt.Errorf("audit log verifier key: %w", err)
	}
	return &Reader{dir: dir, origin: v.Name(), vkey: verifierKey, verifier: v, files: client.FileFetcher{Root: dir}}, nil
}

// Origin is the log's name; VerifierKey what its checkpoints are verified with.
func (r *Reader) Origin() string { return r.origin }

// VerifierKey is the public key in C2SP note form.
func (r *Reader) VerifierKey() string { return r.vkey }

// Size is the number of entries that the newest checkpoint covers.
func (r *Reader) Size(ctx context.Context) (uint64, error) {
	cp, _, err := r.checkpoint(ctx)
	if err != nil {
		return 0, err
	}
	return cp.Size, nil
}

func (r *Reader) checkpoint(ctx context.Context) (*log.Checkpoint, []byte, error) {
	raw, err := r.files.ReadCheckpoint(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read checkpoint: %w", err)
	}
	cp, _, _, err := log.ParseCheckpoint(raw, r.origin, r.verifier)
	if err != nil {
		return nil, nil, fmt.Errorf("verify checkpoint: %w", err)
	}
	return cp, raw, nil
}

// Entry is a record as it stands in the log.
type Entry struct {
	Index uint64
	Data  []byte // JSON of broker.Record
}

// Entries yields entries from index first on, up to the newest checkpoint. Of one that was pruned it yields fs.ErrNotExist.
func (r *Reader) Entries(ctx context.Context, first uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		size, err := r.Size(ctx)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		kept, err := r.First(ctx)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		if first < kept {
			yield(Entry{}, fmt.Errorf("entry %d: its content was pruned: %w", first, fs.ErrNotExist))
			return
		}
		for i := first; i < size; {
			b, err := client.GetEntryBundle(ctx, r.files.ReadEntryBundle, i/layout.EntryBundleWidth, size)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range b.Entries[min(int(i%layout.EntryBundleWidth), len(b.Entries)):] {
				if !yield(Entry{i, e}, nil) {
					return
				}
				i++
			}
			if i < size && i%layout.EntryBundleWidth != 0 {
				yield(Entry{}, fmt.Errorf("entry bundle %d is short", i/layout.EntryBundleWidth))
				return
			}
		}
	}
}

// Proof shows that an entry is in the log.
type Proof struct {
	Index      uint64   `json:"index"`
	LeafHash   []byte   `json:"leaf_hash"`
	Path       [][]byte `json:"path"` // RFC 6962 audit path
	Checkpoint []byte   `json:"checkpoint"`
}

// Prove makes an inclusion proof against the newest checkpoint, or returns ErrNotYet.
func (r *Reader) Prove(ctx context.Context, index uint64) (Proof, error) {
	cp, raw, err := r.checkpoint(ctx)
	if err != nil {
		return Proof{}, err
	}
	if index >= cp.Size {
		return Proof{}, fmt.Errorf("entry %d: %w (it covers %d)", index, ErrNotYet, cp.Size)
	}
	pb, err := client.NewProofBuilder(ctx, cp.Size, r.files.ReadTile)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	path, err := pb.InclusionProof(ctx, index)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	leaf, err := client.FetchLeafHashes(ctx, r.files.ReadTile, index, 1, cp.Size)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	return Proof{Index: index, LeafHash: leaf[0], Path: path, Checkpoint: raw}, nil
}

// VerifyProof checks a proof with nothing but the log's verifier key, and returns the size of the log it speaks of.
func VerifyProof(p Proof, verifierKey string) (uint64, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return 0, fmt.Errorf("audit log verifier key: %w", err)
	}
	cp, _, _, err := log.ParseCheckpoint(p.Checkpoint, v.Name(), v)
	if err != nil {
		return 0, fmt.Errorf("verify checkpoint: %w", err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, cp.Size, p.LeafHash, p.Path, cp.Hash); err != nil {
		return 0, fmt.Errorf("verify inclusion: %w", err)
	}
	return cp.Size, nil
}

// Verify checks the whole log: every entry, tile and the checkpoint's signature. It returns the number of
// entries. Of those before First it checks the hashes, which is all that is left of them.
func (r *Reader) Verify(ctx context.Context) (uint64, error) {
	size, err := r.Size(ctx)
	if err != nil {
		return 0, err
	}
	pruned, err := r.First(ctx)
	if err != nil {
		return size, err
	}
	err = fsck.New(r.origin, r.verifier, prunedFiles{r.files, pruned}, leafHashes, fsck.Opts{N: 2}).Check(ctx)
	if err != nil {
		msg := err.Error()
		if len(msg) > 300 { // fsck quotes whole tiles in hex
			msg = msg[:300] + "…"
		}
		return size, fmt.Errorf("audit log in %s was tampered with or is damaged: %s", r.dir, msg)
	}
	return size, nil
}

func leafHashes(bundle []byte) ([][]byte, error) {
	if hashes, ok := bytes.CutPrefix(bundle, []byte(hashesOnly)); ok {
		var t api.HashTile
		if err := t.UnmarshalText(hashes); err != nil {
			return nil, fmt.Errorf("parse tile: %w", err)
		}
		return t.Nodes, nil
	}
	var b api.EntryBundle
	if err := b.UnmarshalText(bundle); err != nil {
		return nil, fmt.Errorf("parse entry bundle: %w", err)
	}
	out := make([][]byte, 0, len(b.Entries))
	for _, e := range b.Entries {
		out = append(out, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return out, nil
}
