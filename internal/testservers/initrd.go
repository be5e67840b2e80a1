package testservers

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Tree is a folder that becomes an initial RAM disk.
type Tree struct{ Dir string }

// NewTree makes an empty one with the usual folders.
func NewTree(t testing.TB) Tree {
	t.Helper()
	tree := Tree{t.TempDir()}
	for _, d := range []string{"bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "mnt", "usr/bin", "usr/sbin"} {
		if err := os.MkdirAll(filepath.Join(tree.Dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// Write makes a file.
func (tree Tree) Write(t testing.TB, path, text string, mode fs.FileMode) {
	t.Helper()
	dst := filepath.Join(tree.Dir, path)
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dst, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// Copy copies a file of this machine.
func (tree Tree) Copy(t testing.TB, src, path string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	tree.Write(t, path, string(b), mode)
}

// Program copies a program of this machine to where it stands, with the libraries that it is linked with.
func (tree Tree) Program(t testing.TB, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (see .ci/run): %v", name, err)
	}
	tree.Copy(t, path, path, 0o755)
	out, err := exec.Command("ldd", path).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
		t.Fatalf("ldd %s: %v\n%s", path, err, out)
	}
	for line := range strings.Lines(string(out)) {
		for _, f := range strings.Fields(line) {
			if strings.HasPrefix(f, "/") {
				tree.Copy(t, f, f, 0o755)
			}
		}
	}
}

// Modules copies kernel modules and what they need from the folder of a kernel's modules (…/lib/modules/VERSION).
func (tree Tree) Modules(t testing.TB, dir string, names ...string) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	deps := map[string][]string{} // by file name without its ending
	for s := bufio.NewScanner(f); s.Scan(); {
		path, rest, _ := strings.Cut(s.Text(), ":")
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
		deps[name] = append([]string{path}, strings.Fields(rest)...)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join("lib", "modules", filepath.Base(dir))
	for _, name := range names {
		if bytes.Contains(builtin, []byte("/"+name+".ko")) {
			continue
		}
		files, ok := deps[strings.ReplaceAll(name, "-", "_")]
		if !ok {
			t.Fatalf("kernel %s has no module %s", filepath.Base(dir), name)
		}
		for _, file := range files {
			tree.Copy(t, filepath.Join(dir, file), filepath.Join(dst, file), 0o644)
		}
	}
	for _, index := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if exists(filepath.Join(dir, index)) {
			tree.Copy(t, filepath.Join(dir, index), filepath.Join(dst, index), 0o644)
		}
	}
	if out, err := exec.Command("depmod", "-b", tree.Dir, filepath.Base(dir)).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v\n%s", err, out)
	}
}

// Pack writes the tree as a compressed cpio archive, the same for the same tree.
func (tree Tree) Pack(t testing.TB, path string) {
	t.Helper()
	var names []string
	err := filepath.WalkDir(tree.Dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree.Dir, p)
		names = append(names, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	cmd := exec.Command("sh", "-c", fmt.Sprintf("cpio --quiet --reproducible -o -H newc -R 0:0 | zstd -q -3 > %q", path))
	cmd.Dir = tree.Dir
	cmd.Stdin = strings.NewReader(strings.Join(names, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pack initrd: %v\n%s", err, out)
	}
}
