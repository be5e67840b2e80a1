package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"

	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/internal/durable"
)

// prunedFile holds the number of the first entry whose content is kept. The hashes of all are.
const prunedFile = "pruned"

// First is the first entry whose content is kept, 0 if nothing was pruned.
func (r *Reader) First(context.Context) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, prunedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how far the log is pruned: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n%layout.EntryBundleWidth != 0 {
		return 0, fmt.Errorf("%s: %q is not the number of an entry that a bundle begins with", prunedFile, strings.TrimSpace(string(b)))
	}
	return n, nil
}

// Pruned says what Prune did, or would do.
type Pruned struct {
	Entries uint64 `json:"entries"` // whose content went
	First   uint64 `json:"first"`   // the first one that is kept
	Bytes   int64  `json:"bytes"`
}

// Prune removes the content of entries that are older than before, in whole
// bundles of 256, the newest bundle never. The hashes of all entries stay, so
// checkpoints, inclusion proofs and receipts verify as before. With archive,
// a folder, the bundles are moved there under the same names: put back, they
// are the log as it was. dry only counts. It may run beside the log's writer.
func (r *Reader) Prune(ctx context.Context, before time.Time, archive string, dry bool) (Pruned, error) {
	first, err := r.First(ctx)
	if err != nil {
		return Pruned{}, err
	}
	out := Pruned{First: first}
	size, err := r.Size(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	for next := first + layout.EntryBundleWidth; next < size; next += layout.EntryBundleWidth {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		bundle := out.First / layout.EntryBundleWidth
		newest, err := r.lastTime(ctx, bundle, size)
		if err != nil {
			return out, fmt.Errorf("prune entry bundle %d: %w", bundle, err)
		}
		if !newest.Before(before) {
			break
		}
		n, err := r.pruneBundle(bundle, next, archive, dry)
		if err != nil {
			return out, fmt.Errorf("prune entry bundle %d: %w", bundle, err)
		}
		out.Entries, out.First, out.Bytes = out.Entries+layout.EntryBundleWidth, next, out.Bytes+n
	}
	return out, nil
}

// lastTime is the time of a full bundle's last record; they are in order, but for milliseconds.
func (r *Reader) lastTime(ctx context.Context, bundle, size uint64) (time.Time, error) {
	b, err := client.GetEntryBundle(ctx, r.files.ReadEntryBundle, bundle, size)
	if err != nil {
		return time.Time{}, err
	}
	if len(b.Entries) != layout.EntryBundleWidth {
		return time.Time{}, fmt.Errorf("has %d entries, want %d", len(b.Entries), layout.EntryBundleWidth)
	}
	var latest time.Time
	for _, e := range b.Entries {
		var rec struct {
			Time time.Time `json:"time"`
		}
		if err := strictjson.Unmarshal(e, &rec); err == nil && rec.Time.After(latest) {
			latest = rec.Time
		}
	}
	if latest.IsZero() {
		return time.Time{}, errors.New("no record in it says its time")
	}
	return latest, nil
}

// pruneBundle first writes down that the bundle is going: a crash leaves a file that is in nobody's way.
func (r *Reader) pruneBundle(bundle, next uint64, archive string, dry bool) (int64, error) {
	name := layout.EntriesPath(bundle, 0)
	file := filepath.Join(r.dir, name)
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	if dry {
		return info.Size(), nil
	}
	if archive != "" {
		if err := copyFile(file, filepath.Join(archive, name)); err != nil {
			return 0, fmt.Errorf("archive: %w", err)
		}
	}
	if err := durable.WriteFile(filepath.Join(r.dir, prunedFile), []byte(strconv.FormatUint(next, 10)+"\n"), 0o644); err != nil {
		return 0, err
	}
	return info.Size(), os.Remove(file)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(to, b, 0o644)
}

// prunedFiles is a log of which the first entries are known by their hashes only.
type prunedFiles struct {
	client.FileFetcher
	first uint64
}

const hashesOnly = "claviger: hashes only\n"

// ReadEntryBundle is the bundle, or, of one that was pruned, the hashes that its tile has.
func (p prunedFiles) ReadEntryBundle(ctx context.Context, i uint64, part uint8) ([]byte, error) {
	if i >= p.first/layout.EntryBundleWidth {
		return p.FileFetcher.ReadEntryBundle(ctx, i, part)
	}
	tile, err := p.ReadTile(ctx, 0, i, part)
	if err != nil {
		return nil, err
	}
	return append([]byte(hashesOnly), tile...), nil
}
