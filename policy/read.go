package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader/filter"
)

// Limits bound what is read from the policy folder. Zero fields take the default.
type Limits struct {
	MaxFiles   int   // in all bundles together; default 1,000
	MaxFile    int64 // bytes of one file, unpacked; default 1 MiB
	MaxTotal   int64 // bytes of all files, unpacked; default 16 MiB
	MaxArchive int64 // bytes of one .tar.gz; default 4 MiB
}

func (l Limits) withDefaults() Limits {
	if l.MaxFiles <= 0 {
		l.MaxFiles = 1000
	}
	if l.MaxFile <= 0 {
		l.MaxFile = 1 << 20
	}
	if l.MaxTotal <= 0 {
		l.MaxTotal = 16 << 20
	}
	if l.MaxArchive <= 0 {
		l.MaxArchive = 4 << 20
	}
	return l
}

// ErrTooLarge is returned for a bundle or an input beyond its limit.
var ErrTooLarge = errors.New("too large")

// rawBundle is the content of one bundle in memory, so that what is hashed,
// verified and compiled is the same bytes.
type rawBundle struct {
	name  string
	loose bool      // files of an unpacked folder, which come and go one by one
	files []rawFile // sorted by path
}

type rawFile struct {
	path string // slash-separated, relative
	data []byte
}

// reader reads a folder within the limits, counting over all bundles.
type reader struct {
	limits Limits
	files  int
	total  int64
}

// folder reads dir: every *.tar.gz directly in it is a bundle, and the other
// policy files, if any, are one more.
func (r *reader) folder(dir string) ([]rawBundle, error) {
	dir, err := filepath.EvalSymlinks(dir) // once: it may come to point elsewhere while it is read
	if err != nil {
		return nil, fmt.Errorf("listing policies: %w", err)
	}
	names, err := policyFiles(dir)
	if err != nil {
		return nil, err
	}
	var out []rawBundle
	loose := rawBundle{name: "folder", loose: true}
	for _, n := range names {
		full := filepath.Join(dir, filepath.FromSlash(n))
		if isArchive(n) {
			if strings.Contains(n, "/") {
				continue // an archive inside an unpacked bundle is not a bundle
			}
			b, err := readBounded(full, r.limits.MaxArchive)
			if err != nil {
				return nil, err
			}
			rb, err := r.archive(n, b)
			if err != nil {
				return nil, err
			}
			out = append(out, rb)
			continue
		}
		b, err := readBounded(full, r.limits.MaxFile)
		if err != nil {
			return nil, err
		}
		if err := r.add(&loose, n, b); err != nil {
			return nil, err
		}
	}
	if len(loose.files) > 0 {
		out = append(out, loose)
	}
	return out, nil
}

// archive unpacks a gzipped tar into memory. The unpacked size is limited while
// reading: a small archive can hold gigabytes of zeros.
func (r *reader) archive(name string, b []byte) (rawBundle, error) {
	rb := rawBundle{name: name}
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return rb, fmt.Errorf("reading %s: %w", name, err)
	}
	tr := tar.NewReader(io.LimitReader(zr, 2*r.limits.MaxTotal+(1<<20)))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rb, fmt.Errorf("reading %s: %w", name, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		p := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if p == "" || strings.Contains(h.Name, "..") {
			return rb, fmt.Errorf("reading %s: file name %q", name, h.Name)
		}
		data, err := io.ReadAll(io.LimitReader(tr, r.limits.MaxFile+1))
		if err != nil {
			return rb, fmt.Errorf("reading %s: %s: %w", name, p, err)
		}
		// Two files of one name would let a signature cover the other one.
		if slices.ContainsFunc(rb.files, func(f rawFile) bool { return f.path == p }) {
			return rb, fmt.Errorf("reading %s: %s occurs twice", name, p)
		}
		if err := r.add(&rb, p, data); err != nil {
			return rb, fmt.Errorf("reading %s: %w", name, err)
		}
	}
	slices.SortFunc(rb.files, func(a, b rawFile) int { return strings.Compare(a.path, b.path) })
	return rb, nil
}

func (r *reader) add(rb *rawBundle, p string, data []byte) error {
	r.files++
	r.total += int64(len(data))
	switch {
	case int64(len(data)) > r.limits.MaxFile:
		return fmt.Errorf("%s: over %d bytes: %w", p, r.limits.MaxFile, ErrTooLarge)
	case r.files > r.limits.MaxFiles:
		return fmt.Errorf("over %d files: %w", r.limits.MaxFiles, ErrTooLarge)
	case r.total > r.limits.MaxTotal:
		return fmt.Errorf("over %d bytes in all: %w", r.limits.MaxTotal, ErrTooLarge)
	}
	rb.files = append(rb.files, rawFile{path: p, data: data})
	return nil
}

func isArchive(name string) bool { return strings.HasSuffix(name, ".tar.gz") }

// wanted reports whether a file in the folder belongs to a bundle.
func wanted(name string) bool {
	switch base := path.Base(name); {
	case base == ".manifest", base == ".signatures.json":
		return true
	case strings.HasPrefix(base, "."):
		return false // editors' files, and the ..data folders of Kubernetes volumes
	default:
		switch path.Ext(base) {
		case ".rego", ".json", ".yaml", ".yml", ".wasm":
			return true
		}
		return isArchive(base)
	}
}

// policyFiles lists the wanted files under dir, sorted, as slash-separated
// relative paths. dir itself may be a symbolic link, and so may files, as
// Kubernetes mounts them. What else bears the name of a policy file, and links
// to folders, are refused: a file that is passed over may be the one that denies.
func policyFiles(dir string) ([]string, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("listing policies: %w", err)
	}
	var names []string
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p != root && strings.HasPrefix(d.Name(), ".") && !wanted(d.Name()) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		fi, err := os.Stat(p)
		switch rel = filepath.ToSlash(rel); {
		case err != nil && wanted(rel):
			return err
		case err != nil:
			return nil
		case fi.IsDir():
			return fmt.Errorf("%s is a symbolic link to a folder, which is not followed: put the files there, or make the whole policy folder a link", rel)
		case !wanted(rel):
			return nil
		case !fi.Mode().IsRegular():
			return fmt.Errorf("%s is not a regular file", rel)
		}
		names = append(names, rel)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing policies: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// fingerprint hashes what the system says of the folder's files: cheap enough
// to take twice a second. Files that come and go meanwhile change it, too, and so
// does a file that takes the place of one of the same size and time (see identity).
func fingerprint(dir string) ([32]byte, error) {
	names, err := policyFiles(dir)
	if err != nil {
		return [32]byte{}, err
	}
	h := sha256.New()
	for _, n := range names {
		fi, err := os.Stat(filepath.Join(dir, filepath.FromSlash(n)))
		if err != nil {
			return [32]byte{}, fmt.Errorf("listing policies: %w", err)
		}
		writeLP(h, []byte(n))
		writeLP(h, binary.BigEndian.AppendUint64(nil, uint64(fi.Size())))
		writeLP(h, binary.BigEndian.AppendUint64(nil, uint64(fi.ModTime().UnixNano())))
		writeLP(h, identity(fi))
	}
	return [32]byte(h.Sum(nil)), nil
}

func writeLP(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
	h.Write(b)
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading policy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading policy: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading policy: %s: over %d bytes: %w", name, limit, ErrTooLarge)
	}
	return b, nil
}

// memLoader hands files in memory to OPA's bundle reader.
type memLoader struct{ files []rawFile }

func (m *memLoader) NextFile() (*bundle.Descriptor, error) {
	if len(m.files) == 0 {
		return nil, io.EOF
	}
	f := m.files[0]
	m.files = m.files[1:]
	return bundle.NewDescriptor(f.path, f.path, bytes.NewBuffer(slices.Clone(f.data))), nil
}

func (m *memLoader) WithFilter(filter.LoaderFilter) bundle.DirectoryLoader   { return m }
func (m *memLoader) WithPathFormat(bundle.PathFormat) bundle.DirectoryLoader { return m }
func (m *memLoader) WithSizeLimitBytes(int64) bundle.DirectoryLoader         { return m }
func (m *memLoader) WithFollowSymlinks(bool) bundle.DirectoryLoader          { return m }
