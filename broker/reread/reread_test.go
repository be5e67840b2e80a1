package reread

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestFile: what a file says counts as soon as it is looked at again; what
// cannot be used is told once, and what counted before goes on to count.
func TestFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name, other := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
		write := func(name, text string) {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		bad := errors.New("half written")
		parse := func(c [][]byte) (string, error) {
			if string(c[0]) == "half" {
				return "", bad
			}
			return string(c[0]) + string(c[1]), nil
		}
		if _, err := Open(nil, parse, name, other); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("opened what is not there: %v", err)
		}
		write(name, "one")
		write(other, "!")
		var told []error
		f, err := Open(func(err error) { told = append(told, err) }, parse, name, other)
		if err != nil {
			t.Fatal(err)
		}
		want := func(want string) {
			t.Helper()
			time.Sleep(every)
			if got := f.Get(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		want("one!")
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		write(name, "two")
		if err := os.Chtimes(name, info.ModTime(), info.ModTime()); err != nil { // as long and as old as before
			t.Fatal(err)
		}
		want("two!")
		write(name, "half")
		want("two!")
		want("two!")
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
		want("two!")
		write(other, "?")
		write(name, "three")
		want("three?")
		if len(told) != 3 || !errors.Is(told[0], bad) || !errors.Is(told[1], os.ErrNotExist) || told[2] != nil {
			t.Errorf("told %v", told)
		}
		// A link that leads elsewhere, as Kubernetes replaces secrets.
		link, next := filepath.Join(filepath.Dir(name), "link"), filepath.Join(filepath.Dir(name), "next")
		if err := errors.Join(os.Symlink(name, link), os.Symlink(other, next)); err != nil {
			t.Fatal(err)
		}
		l, err := Open(nil, func(c [][]byte) (string, error) { return string(slices.Concat(c...)), nil }, link)
		if err != nil || l.Get() != "three" {
			t.Fatalf("%v", err)
		}
		if err := os.Rename(next, link); err != nil {
			t.Fatal(err)
		}
		time.Sleep(every)
		if got := l.Get(); got != "?" {
			t.Errorf("got %q", got)
		}
	})
}
