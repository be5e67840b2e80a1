package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// What a command prints may have come from anybody: a certificate's name, a
// guest's resources, a server's error. Two things keep it from being more than
// text. A Writer lets no terminal see a control character, whatever a command
// writes; and Fprintf, Fprintln and Text keep a value on its line and in its
// cell. Characters are written as JSON escapes them, so that JSON stays what it is.

// Text is s on one line: each character that does not print, or hides, stands
// as its escape.
func Text(s string) string { return escape(s, false) }

// escape writes what does not print as \u and four digits of UTF-16 (JSON's
// way), and bytes that are no UTF-8 as \x and two digits.
func escape(s string, layout bool) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || !prints(r) && !(layout && isLayout(r)) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case prints(r) || layout && isLayout(r):
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// prints says that a character shows as itself. Controls of either set, marks
// of direction, spaces of no width and fillers do not: a reader would see
// another text than the one that is there.
func prints(r rune) bool {
	return unicode.IsPrint(r) && (r < 0x80 || !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) && r != '\u2800')
}

func isLayout(r rune) bool { return r == '\n' || r == '\t' }

// plain formats a value, and then escapes it.
type plain struct{ value any }

// Format implements fmt.Formatter.
func (p plain) Format(s fmt.State, verb rune) {
	_, _ = io.WriteString(s, Text(fmt.Sprintf(fmt.FormatString(s, verb), p.value)))
}

func plains(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		out[i] = plain{a}
	}
	return out
}

// Fprintf is fmt.Fprintf with each argument on one line: what the format itself
// has in it is the command's own.
func Fprintf(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format, plains(args)...)
}

// Fprintln is fmt.Fprintln in the same way.
func Fprintln(w io.Writer, args ...any) {
	_, _ = fmt.Fprintln(w, plains(args)...)
}

// Fail prints an error as a command's last word. Where it has several lines,
// none of them looks like one of ours.
func Fail(w io.Writer, command, text string) {
	var lines []string
	for l := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		lines = append(lines, Text(l))
	}
	_, _ = fmt.Fprintf(w, "%s: %s\n", command, strings.Join(lines, "\n    "))
}

// Writer passes text on with all that does not print escaped, but for newlines
// and tabs. It may be used at once by several goroutines.
type Writer struct {
	w io.Writer

	mu   sync.Mutex
	rest []byte // the beginning of a character; guarded by mu
}

// Plain makes a Writer.
func Plain(w io.Writer) *Writer { return &Writer{w: w} }

// File is the file that w writes to, through a Writer or not; nil if it is none.
func File(w io.Writer) *os.File {
	if p, ok := w.(*Writer); ok {
		w = p.w
	}
	f, _ := w.(*os.File)
	return f
}

// Write implements io.Writer.
func (p *Writer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := append(p.rest, b...)
	n := len(text) - started(text)
	p.rest = append([]byte(nil), text[n:]...)
	if _, err := io.WriteString(p.w, escape(string(text[:n]), true)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// started is the length of an unfinished character at the end of b.
func started(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}
