package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal: what a person types, and what a program reads.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func echoes(t *testing.T, f *os.File) bool {
	t.Helper()
	termios, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return termios.Lflag&unix.ECHO != 0
}

// typist types when it is asked.
type typist struct {
	do   func()
	text bytes.Buffer
}

func (y *typist) Write(b []byte) (int, error) {
	y.do()
	return y.text.Write(b)
}

// TestAskAtTerminal: what is typed is not shown, and the terminal is as it was, however the question ended.
func TestAskAtTerminal(t *testing.T) {
	person, program := terminal(t)
	typed := &typist{do: func() {
		if echoes(t, program) {
			t.Error("what is typed would be shown")
		}
		if _, err := io.WriteString(person, "open sesame\nnext\n"); err != nil {
			t.Error(err)
		}
	}}
	got, err := askAt(program, typed)(t.Context(), "passphrase of root")
	if err != nil || string(got) != "open sesame" || !strings.Contains(typed.text.String(), "passphrase of root") {
		t.Errorf("%q, %v, prompt %q", got, err, typed.text.String())
	}
	if !echoes(t, program) {
		t.Error("the terminal does not echo any more")
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := askAt(program, &typist{do: cancel})(ctx, "passphrase"); err == nil {
		t.Error("the question outlives its context")
	}
	if !echoes(t, program) {
		t.Error("the terminal does not echo after a question that ended early")
	}
}

func TestAskAtPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.WriteString(w, "one\ntwo\n"+strings.Repeat("x", maxPassphrase+1)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ask := askAt(r, io.Discard)
	for _, want := range []string{"one", "two"} {
		if got, err := ask(t.Context(), ""); err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if _, err := ask(t.Context(), ""); err == nil {
		t.Error("a line without end is a passphrase")
	}
	if _, err := ask(t.Context(), ""); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestAskByProgram: the program gets the prompt, and is told when nobody waits for an answer any more.
func TestAskByProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "ask")
	script := "#!/bin/sh\ncase $1 in *root*) echo 'open sesame';; *) echo asking >&2; exec sleep 60;; esac\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := askBy(program, io.Discard)(t.Context(), "passphrase of root"); err != nil || string(got) != "open sesame" {
		t.Errorf("%q, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := askBy(program, &typist{do: cancel})(ctx, "passphrase of data"); err == nil {
		t.Error("the question outlives its context")
	}
}
