// Package reread is what files say, read again when they change: a certificate
// that is renewed, a CA that follows another, a secret id that is replaced. No
// process has to be restarted for that. Contents are compared, not times: a
// file system may set the time back, and a link may lead elsewhere.
package reread

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// every is how often files are looked at, at most.
const every = time.Second

// Digest is of the contents of files; a file that cannot be read is one of them.
type Digest [sha256.Size]byte

// File is what files say, as its parse function understands it. It is safe for concurrent use.
type File[T any] struct {
	parse func(contents [][]byte) (T, error)
	paths []string
	told  func(error)

	mu      sync.Mutex
	value   T         // guarded by mu, as are the next
	seen    Digest    // last parsed, well or not
	checked time.Time // when it was last looked
	err     error     // why what the files say now is not in force
}

// Open reads files for the first time. told hears, once per change, why what
// they say is not in force, and nil when it is again; it may be nil.
func Open[T any](told func(error), parse func(contents [][]byte) (T, error), paths ...string) (*File[T], error) {
	f := &File[T]{parse: parse, paths: paths, told: told}
	if told == nil {
		f.told = func(error) {}
	}
	contents, err := read(paths)
	if err != nil {
		return nil, err
	}
	if f.value, err = parse(contents); err != nil {
		return nil, err
	}
	f.seen, f.checked = digest(contents), time.Now()
	return f, nil
}

// Get is what the files say; while they say nothing that can be used (a renewal
// half written), what they said before.
func (f *File[T]) Get() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) < every {
		return f.value
	}
	f.checked = time.Now()
	contents, err := read(f.paths)
	if err == nil {
		now := digest(contents)
		if now == f.seen {
			if f.err == nil {
				return f.value
			}
			err = f.err
		} else {
			f.seen = now
			var value T
			if value, err = f.parse(contents); err == nil {
				f.value = value
			}
		}
	}
	before := f.err
	f.err = err
	if fmt.Sprint(before) != fmt.Sprint(err) {
		f.told(err)
	}
	return f.value
}

// DigestOf reads files to tell whether they, or their names, changed.
func DigestOf(paths ...string) Digest {
	contents, err := read(paths)
	if err != nil {
		return sha256.Sum256([]byte(err.Error()))
	}
	return digest(append(contents, []byte(strings.Join(paths, "\x00"))))
}

func read(paths []string) (contents [][]byte, err error) {
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		contents = append(contents, b)
	}
	return contents, nil
}

func digest(contents [][]byte) Digest {
	h := sha256.New()
	for _, b := range contents {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	return Digest(h.Sum(nil))
}
