package policy

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/internal/durable"
)

// keeper keeps good bundles on disk, so that a pin, and what was in force, survive
// a restart although the policy folder holds something else by then. The zero
// keeper keeps nothing. Bundles are compiled again, and their signatures verified again, when they are read.
type keeper struct{ dir string }

// keptBundle is what a file of the keeper holds, as gzipped JSON: the bundles of the folder, as they were read.
type keptBundle struct {
	Bundles []keptFiles `json:"bundles"`
}

type keptFiles struct {
	Name  string     `json:"name"`
	Loose bool       `json:"loose"`
	Files []keptFile `json:"files"`
}

type keptFile struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
}

const keptSuffix = ".json.gz"

// file of a digest, "sha256:<hex>".
func (k keeper) file(digest string) string {
	return filepath.Join(k.dir, strings.ReplaceAll(digest, ":", "-")+keptSuffix)
}

// save keeps the bundle; the one saved last is the newest. It is durable on return.
func (k keeper) save(digest string, raw []rawBundle) error {
	if k.dir == "" {
		return nil
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("keep policy bundle: %w", err)
	}
	now := k.after()
	err := k.write(digest, raw) // also what is there: it may be signed by another key now
	if err == nil {
		err = os.Chtimes(k.file(digest), now, now)
	}
	if err != nil {
		return fmt.Errorf("keep policy bundle: %w", err)
	}
	return nil
}

// after is a time later than that of all that is kept, whatever the clock says: it may have been set back
// since, and the newest bundle must not come after an older, laxer one.
func (k keeper) after() time.Time {
	at := time.Now()
	entries, _ := os.ReadDir(k.dir) // what cannot be read now was not kept
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), keptSuffix) && !info.ModTime().Before(at) {
			at = info.ModTime().Add(time.Second) // coarse file systems have no less
		}
	}
	return at
}

func (k keeper) write(digest string, raw []rawBundle) error {
	var doc keptBundle
	for _, b := range raw {
		files := keptFiles{Name: b.name, Loose: b.loose}
		for _, f := range b.files {
			files.Files = append(files.Files, keptFile{f.path, f.data})
		}
		doc.Bundles = append(doc.Bundles, files)
	}
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if err := json.NewEncoder(zw).Encode(doc); err != nil {
		return err
	}
	if err := zw.Close(); err != nil {
		return err
	}
	return durable.WriteFile(k.file(digest), packed.Bytes(), 0o600)
}

// has says whether a bundle is kept.
func (k keeper) has(digest string) bool {
	_, err := os.Stat(k.file(digest))
	return err == nil
}

// all reads what is kept, oldest first. What cannot be read is left out, and named in the error.
func (k keeper) all() ([][]rawBundle, error) {
	if k.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(k.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read kept policy bundles: %w", err)
	}
	type aged struct {
		raw []rawBundle
		at  time.Time
	}
	var found []aged
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), keptSuffix) {
			continue
		}
		info, err := e.Info()
		if err == nil {
			var raw []rawBundle
			if raw, err = k.read(e.Name()); err == nil {
				found = append(found, aged{raw, info.ModTime()})
				continue
			}
		}
		errs = append(errs, fmt.Errorf("read kept policy bundle %s: %w", e.Name(), err))
	}
	slices.SortStableFunc(found, func(a, b aged) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	out := make([][]rawBundle, 0, len(found))
	for _, f := range found {
		out = append(out, f.raw)
	}
	return out, errors.Join(errs...)
}

func (k keeper) read(name string) ([]rawBundle, error) {
	f, err := os.Open(filepath.Join(k.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	limits := Limits{}.withDefaults()
	b, err := io.ReadAll(io.LimitReader(zr, 3*limits.MaxTotal)) // base64 is longer by a third
	if err != nil {
		return nil, err
	}
	var doc keptBundle
	if err := strictjson.UnmarshalKnown(b, &doc); err != nil {
		return nil, err
	}
	var out []rawBundle
	for _, files := range doc.Bundles {
		raw := rawBundle{name: files.Name, loose: files.Loose}
		for _, f := range files.Files {
			raw.files = append(raw.files, rawFile{f.Path, f.Data})
		}
		out = append(out, raw)
	}
	return out, nil
}

// drop forgets a bundle.
func (k keeper) drop(digest string) {
	if k.dir != "" {
		_ = os.Remove(k.file(digest)) // it is tried again with the next one
	}
}
