package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/strictjson"
)

// Index answers what was released to a subject without reading the log: some
// 40 bytes of each entry, in one file that is read from end to end. It is
// derived from the log, at any time, and never on the path of a release. A
// file that is damaged, or of another log, is made anew.
//
// The file is a header and a frame for each entry. A frame is its length
// (uvarint), its payload and the CRC-32C of both; strings stand in full where
// they first occur and are numbers after that.
type Index struct {
	log  *Reader
	path string

	mu sync.Mutex // guards all below
	indexState
	file *os.File
}

type indexState struct {
	first, next uint64 // the entries that have a frame are [first, next)
	size        int64  // of the file, up to the last good frame
	last        int64  // time of the last frame, Unix milliseconds
	lastHash    [4]byte
	words       []string
	number      map[string]uint64 // by word
	recent      map[string]uint64 // entry by id, of the last releases: see withheld
	early       map[string]bool   // ids that were withheld before the log had their release
	order       []string          // of both
	withheld    map[uint64]bool   // releases that were not sent after all
}

const (
	indexMagic = "claviger audit index 1\n"
	// recentReleases bounds what is kept to find the release that a later record withholds.
	recentReleases = 1 << 14
	maxFrame       = 1 << 20
)

// Kinds of frames.
const (
	frameOther    = iota // nothing was sent
	frameReleased        // and counted, unless withheld
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenIndex opens the index of a log in a file of its own.
func OpenIndex(log *Reader, path string) (*Index, error) {
	x := &Index{log: log, path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("index of the audit log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("index of the audit log: %w", err)
	}
	x.file = f
	x.load()
	if err := x.file.Truncate(x.size); err != nil {
		f.Close()
		return nil, fmt.Errorf("index of the audit log: %w", err)
	}
	return x, nil
}

// Close closes the file. It may be called again.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("index of the audit log: %w", err)
	}
	return nil
}

func (x *Index) header() string { return indexMagic + x.log.VerifierKey() + "\n" }

func (x *Index) reset() {
	x.indexState = indexState{number: map[string]uint64{}, recent: map[string]uint64{}, early: map[string]bool{}, withheld: map[uint64]bool{}}
}

// load reads the frames that are whole. With another header nothing is.
func (x *Index) load() {
	x.reset()
	in := bufio.NewReaderSize(io.NewSectionReader(x.file, 0, 1<<62), 1<<20)
	head := make([]byte, len(x.header())+8)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(head)-8]) != x.header() {
		return
	}
	x.first = binary.BigEndian.Uint64(head[len(head)-8:])
	x.next, x.size = x.first, int64(len(head))
	d := decoder{learn: func(word string) { x.words, x.number[word] = append(x.words, word), uint64(len(x.words)) }}
	var buf []byte
	for {
		payload, n, err := readFrame(in, buf)
		if err != nil {
			return
		}
		buf = payload
		f, err := d.frame(payload)
		if err != nil {
			return
		}
		x.note(f)
		x.size += int64(n)
	}
}

func appendFrame(b, body []byte) []byte {
	b = append(binary.AppendUvarint(b, uint64(len(body))), body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
}

// readFrame reads a frame into buf, or a longer one.
func readFrame(in *bufio.Reader, buf []byte) (payload []byte, n int, err error) {
	length, err := binary.ReadUvarint(in)
	if err != nil || length > maxFrame {
		return nil, 0, errors.Join(err, errors.New("not a frame"))
	}
	b := slices.Grow(buf[:0], int(length)+4)[:length+4]
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, 0, err
	}
	payload = b[:length]
	if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(b[length:]) {
		return nil, 0, errors.New("damaged frame")
	}
	return payload, len(binary.AppendUvarint(nil, length)) + len(b), nil
}

// frame is what is kept of an entry.
type frame struct {
	kind      byte
	at        int64 // Unix milliseconds
	hash      [4]byte
	id        []byte // of a release; what it withholds otherwise
	session   []byte
	subjects  []uint64 // words, each the kind, a space and the value
	resources []frameResource
}

type frameResource struct {
	path, version uint64 // words
	unchanged     bool
}

// note counts a frame in. x.mu is held.
func (x *Index) note(f frame) {
	switch {
	case f.kind == frameReleased && x.early[string(f.id)]:
		x.withheld[x.next] = true
	case f.kind == frameReleased:
		x.recent[string(f.id)] = x.next
		x.order = append(x.order, string(f.id))
	case len(f.id) > 0:
		if i, ok := x.recent[string(f.id)]; ok {
			x.withheld[i] = true
		} else {
			x.early[string(f.id)] = true
			x.order = append(x.order, string(f.id))
		}
	}
	if len(x.order) > recentReleases {
		delete(x.recent, x.order[0])
		delete(x.early, x.order[0])
		x.order = x.order[1:]
	}
	x.last, x.lastHash = f.at, f.hash
	x.next++
}

// frameOf makes the payload of an entry's frame. Words that are new are learnt.
func (x *Index) frameOf(data []byte) ([]byte, frame, error) {
	hash := rfc6962.DefaultHasher.HashLeaf(data)
	f := frame{at: x.last, hash: [4]byte(hash[:4])}
	out := append([]byte{frameOther}, f.hash[:]...)
	var r broker.Record
	if err := strictjson.Unmarshal(data, &r); err != nil {
		// A log holds what was written to it; what this version cannot read is no release that it can name.
		return binary.AppendVarint(out, 0), f, nil
	}
	f.at, f.session, f.id = r.Time.UnixMilli(), []byte(r.Session), []byte(r.Withholds)
	if r.Outcome == broker.Released {
		f.kind, f.id = frameReleased, []byte(r.ID)
		out[0] = frameReleased
	}
	out = binary.AppendVarint(out, f.at-x.last)
	out = appendText(out, f.id)
	out = appendText(out, f.session)
	var subjects []string
	for _, s := range r.Subjects() {
		switch s.Kind {
		case broker.RevokeSession, broker.RevokeResource, broker.RevokeSecretVersion: // these follow from the rest
		default:
			s = s.Canonical()
			subjects = append(subjects, string(s.Kind)+" "+s.Value)
		}
	}
	out = binary.AppendUvarint(out, uint64(len(subjects)))
	for _, s := range subjects {
		var n uint64
		out, n = x.appendWord(out, s)
		f.subjects = append(f.subjects, n)
	}
	out = binary.AppendUvarint(out, uint64(len(r.Resources)))
	for _, res := range r.Resources {
		var fr frameResource
		out, fr.path = x.appendWord(out, "path "+res.Path)
		out, fr.version = x.appendWord(out, "version "+res.Version)
		fr.unchanged = res.Unchanged
		flag := byte(0)
		if res.Unchanged {
			flag = 1
		}
		out = append(out, flag)
		f.resources = append(f.resources, fr)
	}
	return out, f, nil
}

func appendText[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// appendWord writes a word's number, and the word itself where it is new.
func (x *Index) appendWord(b []byte, word string) ([]byte, uint64) {
	n, ok := x.number[word]
	if !ok {
		n = uint64(len(x.words))
		x.words, x.number[word] = append(x.words, word), n
		return appendText(binary.AppendUvarint(b, n), word), n
	}
	return binary.AppendUvarint(b, n), n
}

// decoder reads payloads in order, from the first on. What it returns is good until the next call.
type decoder struct {
	subjects  []uint64
	resources []frameResource

	known uint64 // words that occurred
	last  int64  // time of the frame before
	learn func(word string)
}

func (d *decoder) frame(b []byte) (frame, error) {
	p := payload{b: b}
	var f frame
	f.kind = p.byte()
	copy(f.hash[:], p.bytes(4))
	f.at = d.last + p.varint()
	if p.err == nil {
		d.last = f.at
	}
	if len(p.b) == 0 {
		return f, p.err // an entry that this version could not read
	}
	f.id, f.session = p.bytes(p.uvarint()), p.bytes(p.uvarint())
	f.subjects, f.resources = d.subjects[:0], d.resources[:0]
	word := func() uint64 {
		n := p.uvarint()
		switch {
		case n == d.known:
			w := p.bytes(p.uvarint())
			d.known++
			if d.learn != nil && p.err == nil {
				d.learn(string(w))
			}
		case n > d.known:
			p.err = errors.New("a word that is not known")
		}
		return n
	}
	for n := p.uvarint(); n > 0 && p.err == nil; n-- {
		f.subjects = append(f.subjects, word())
	}
	for n := p.uvarint(); n > 0 && p.err == nil; n-- {
		f.resources = append(f.resources, frameResource{word(), word(), p.byte() == 1})
	}
	d.subjects, d.resources = f.subjects, f.resources
	return f, p.err
}

// payload is read from the front; the first error sticks.
type payload struct {
	b   []byte
	err error
}

func (p *payload) bytes(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.err, p.b = io.ErrUnexpectedEOF, nil
		return nil
	}
	out := p.b[:n]
	p.b = p.b[n:]
	return out
}

func (p *payload) byte() byte {
	if b := p.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (p *payload) uvarint() uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 {
		p.err, p.b = io.ErrUnexpectedEOF, nil
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *payload) varint() int64 {
	v, n := binary.Varint(p.b)
	if n <= 0 {
		p.err, p.b = io.ErrUnexpectedEOF, nil
		return 0
	}
	p.b = p.b[n:]
	return v
}

// Update takes in what the log has more, up to 20,000 entries a call, so that
// who asks meanwhile need not wait long. It says up to which entry there are
// frames, and how many entries the log has.
func (x *Index) Update(ctx context.Context) (done, size uint64, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	size, err = x.log.Size(ctx)
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return x.next, 0, err
	}
	if err := x.fits(ctx, size); err != nil {
		return x.next, size, err
	}
	if x.next >= size {
		return x.next, size, nil
	}
	err = x.extend(ctx)
	return x.next, size, err
}

// fits starts anew if the index is not that of the log: one that was restored from a backup, for instance.
func (x *Index) fits(ctx context.Context, size uint64) error {
	if x.size > 0 && x.next <= size {
		if x.next == x.first {
			return nil
		}
		for e, err := range x.log.Entries(ctx, x.next-1) {
			if errors.Is(err, fs.ErrNotExist) { // pruned
				first, err := x.log.First(ctx)
				if err != nil || first <= x.next {
					return err
				}
				break // and so were entries that have no frame: what is left is all that can be known without a gap
			}
			if err != nil {
				return err
			}
			if bytes.Equal(rfc6962.DefaultHasher.HashLeaf(e.Data)[:4], x.lastHash[:]) {
				return nil
			}
			break
		}
	}
	first, err := x.log.First(ctx)
	if err != nil {
		return err
	}
	x.reset()
	x.first, x.next = first, first
	head := binary.BigEndian.AppendUint64([]byte(x.header()), first)
	if err := x.file.Truncate(0); err != nil {
		return fmt.Errorf("index of the audit log: %w", err)
	}
	if _, err := x.file.WriteAt(head, 0); err != nil {
		return fmt.Errorf("index of the audit log: %w", err)
	}
	x.size = int64(len(head))
	return nil
}

// extend writes frames for the entries from x.next on. What was not written does not count.
func (x *Index) extend(ctx context.Context) error {
	var pending []byte
	flush := func() error {
		if len(pending) == 0 {
			return nil
		}
		if _, err := x.file.WriteAt(pending, x.size); err != nil {
			x.load() // what is on disk counts
			return fmt.Errorf("index of the audit log: %w", err)
		}
		x.size += int64(len(pending))
		pending = pending[:0]
		return nil
	}
	stop := x.next + 20_000
	for e, err := range x.log.Entries(ctx, x.next) {
		if err == nil && x.next == stop {
			break
		}
		if err != nil {
			return errors.Join(err, flush())
		}
		body, f, err := x.frameOf(e.Data)
		if err != nil {
			return errors.Join(err, flush())
		}
		pending = appendFrame(pending, body)
		x.note(f)
		if len(pending) > 1<<20 {
			if err := errors.Join(flush(), ctx.Err()); err != nil {
				return err
			}
		}
	}
	return flush()
}

// CatchUp is Update until the index has all that the log has, or ctx ends; then the error says how far it is.
func (x *Index) CatchUp(ctx context.Context) error {
	for {
		done, size, err := x.Update(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("the index of the audit log is being made: %d of %d entries so far: %w", done, size, ctx.Err())
		}
		if err != nil || done >= size {
			return err
		}
	}
}

// Exposure is what was released to a subject since a moment, by the entries that have a frame.
func (x *Index) Exposure(ctx context.Context, s broker.Subject, since time.Time) (broker.Exposure, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := broker.Exposure{Log: x.log.Origin(), Entries: x.next - x.first, Pruned: x.first}
	q, ok := x.query(s)
	if !ok {
		return out, nil
	}
	type key struct{ path, version uint64 }
	found := map[key]*broker.ExposedVersion{}
	from := since.UnixMilli()
	err := x.scan(ctx, func(i uint64, f *frame) {
		if f.kind != frameReleased || !since.IsZero() && f.at < from || x.withheld[i] || !q.concerns(f) {
			return
		}
		out.Releases++
		for _, r := range f.resources {
			if r.unchanged || !q.names(r) {
				continue
			}
			at := time.UnixMilli(f.at).UTC()
			v := found[key{r.path, r.version}]
			if v == nil {
				v = &broker.ExposedVersion{Resource: text(x.words[r.path]), Version: text(x.words[r.version]), First: at}
				found[key{r.path, r.version}] = v
			}
			v.Releases++
			if at.Before(v.First) { // entries of one moment are in no order
				v.First = at
			}
			if at.After(v.Last) {
				v.Last = at
			}
		}
	})
	for _, v := range found {
		out.Versions = append(out.Versions, *v)
	}
	slices.SortFunc(out.Versions, func(a, b broker.ExposedVersion) int {
		return cmp.Or(strings.Compare(a.Resource, b.Resource), strings.Compare(a.Version, b.Version))
	})
	return out, err
}

// text is a word without its kind.
func text(word string) string {
	_, s, _ := strings.Cut(word, " ")
	return s
}

// query is a subject in the index's own numbers.
type query struct {
	kind          broker.RevocationKind
	subject       uint64
	session       string
	path, version uint64
}

// query is false if no entry can be about the subject.
func (x *Index) query(s broker.Subject) (q query, ok bool) {
	s = s.Canonical()
	q.kind = s.Kind
	switch s.Kind {
	case broker.RevokeSession:
		q.session = s.Value
		return q, true
	case broker.RevokeResource:
		q.path, ok = x.number["path "+s.Value]
		return q, ok
	case broker.RevokeSecretVersion:
		i := strings.LastIndexByte(s.Value, '@')
		if i < 0 {
			return q, false
		}
		var known bool
		q.path, known = x.number["path "+s.Value[:i]]
		q.version, ok = x.number["version "+s.Value[i+1:]]
		return q, ok && known
	}
	q.subject, ok = x.number[string(s.Kind)+" "+s.Value]
	return q, ok
}

func (q query) concerns(f *frame) bool {
	switch q.kind {
	case broker.RevokeSession:
		return string(f.session) == q.session
	case broker.RevokeResource, broker.RevokeSecretVersion:
		return slices.ContainsFunc(f.resources, q.names)
	}
	return slices.Contains(f.subjects, q.subject)
}

// names says whether a resource of an entry that is concerned is one that is asked about.
func (q query) names(r frameResource) bool {
	switch q.kind {
	case broker.RevokeResource:
		return r.path == q.path
	case broker.RevokeSecretVersion:
		return r.path == q.path && r.version == q.version
	}
	return true
}

// scan shows every frame. x.mu is held.
func (x *Index) scan(ctx context.Context, f func(entry uint64, f *frame)) error {
	head := int64(len(x.header()) + 8)
	in := bufio.NewReaderSize(io.NewSectionReader(x.file, head, max(0, x.size-head)), 1<<20)
	var d decoder
	var buf []byte
	for i := x.first; i < x.next; i++ {
		if i%8192 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		body, _, err := readFrame(in, buf)
		buf = body
		if err != nil {
			return fmt.Errorf("index of the audit log, entry %d: %w", i, err)
		}
		fr, err := d.frame(body)
		if err != nil {
			return fmt.Errorf("index of the audit log, entry %d: %w", i, err)
		}
		f(i, &fr)
	}
	return nil
}

// Has says whether an entry that has a frame is about the subject (or a resource
// of that name was asked for in one; of sessions and versions it does not know without reading all).
func (x *Index) Has(s broker.Subject) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s.Kind == broker.RevokeSession || s.Kind == broker.RevokeSecretVersion {
		return false
	}
	_, ok := x.query(s)
	return ok
}

// Seen lists values of the subject's kind that begin with its value, whatever
// their case; of very many, some.
func (x *Index) Seen(ctx context.Context, s broker.Subject) ([]string, error) {
	const most = 1000
	x.mu.Lock()
	defer x.mu.Unlock()
	begins := func(v string) bool { return len(v) >= len(s.Value) && strings.EqualFold(v[:len(s.Value)], s.Value) }
	found := map[string]bool{}
	switch s.Kind {
	case broker.RevokeResource:
		for _, w := range x.words {
			if v, ok := strings.CutPrefix(w, "path "); ok && begins(v) && len(found) < most {
				found[v] = true
			}
		}
	case broker.RevokeSession, broker.RevokeSecretVersion:
		err := x.scan(ctx, func(_ uint64, f *frame) {
			if len(found) >= most {
				return
			}
			if s.Kind == broker.RevokeSession {
				if v := string(f.session); v != "" && begins(v) {
					found[v] = true
				}
				return
			}
			for _, r := range f.resources {
				if v := text(x.words[r.path]) + "@" + text(x.words[r.version]); begins(v) {
					found[v] = true
				}
			}
		})
		if err != nil {
			return nil, err
		}
	default:
		kind := string(s.Kind) + " "
		for _, w := range x.words {
			if v, ok := strings.CutPrefix(w, kind); ok && begins(v) && len(found) < most {
				found[v] = true
			}
		}
	}
	out := make([]string, 0, len(found))
	for v := range found {
		out = append(out, v)
	}
	slices.Sort(out)
	return out, nil
}
