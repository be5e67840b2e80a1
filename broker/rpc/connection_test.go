package rpc

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/claviger/claviger/broker"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// pipes is a listener within the process, whose time a test can set.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	gone  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.gone:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error { p.once.Do(func() { close(p.gone) }); return nil }
func (*pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// frame is one of HTTP/2 (RFC 9113 §4.1), with when it came.
type frame struct {
	at      time.Duration
	typ     byte
	flags   byte
	payload []byte
}

const (
	frameHeaders  = 1
	frameSettings = 4
	framePing     = 6
	frameGoAway   = 7
	flagAck       = 1
)

// peerConn is a client of HTTP/2 by hand: what a guest does that keeps to no rules.
type peerConn struct {
	net.Conn
	began  time.Time
	polite bool // answers what it is asked

	mu     sync.Mutex
	frames []frame       // guarded by mu, as is the next
	closed time.Duration // by the server; 0: not yet
}

func (p *peerConn) write(typ, flags byte, stream uint32, payload []byte) {
	b := []byte{0, byte(len(payload) >> 8), byte(len(payload)), typ, flags}
	b = append(binary.BigEndian.AppendUint32(b, stream), payload...)
	_, _ = p.Write(b)
}

func (p *peerConn) read() {
	for {
		head := make([]byte, 9)
		_, err := io.ReadFull(p, head)
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if err == nil {
			_, err = io.ReadFull(p, payload)
		}
		p.mu.Lock()
		if err != nil {
			p.closed = time.Since(p.began)
			p.mu.Unlock()
			return
		}
		p.frames = append(p.frames, frame{time.Since(p.began), head[3], head[4], payload})
		p.mu.Unlock()
		if p.polite && head[4]&flagAck == 0 && (head[3] == frameSettings || head[3] == framePing) {
			if head[3] == frameSettings {
				payload = nil
			}
			p.write(head[3], flagAck, 0, payload)
		}
	}
}

// first is the first frame of a type; nil if none has come.
func (p *peerConn) first(typ byte) *frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.frames {
		if f.typ == typ {
			return &f
		}
	}
	return nil
}

// end is when the server closed the connection, or said that it will; 0 if it has not.
func (p *peerConn) end() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.frames {
		if f.typ == frameGoAway {
			return f.at
		}
	}
	return p.closed
}

// TestConnections: what a connection may do, and how long it lasts, whoever made it.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts, err := ServerOptions(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		s, lis := grpc.NewServer(opts...), &pipes{conns: make(chan net.Conn), gone: make(chan struct{})}
		pb.RegisterKeyBrokerServer(s, &Workload{Broker: fakeBroker{watch: func(st broker.Stream) error { _, err := st.Recv(); return err }}})
		go func() { _ = s.Serve(lis) }()
		connect := func(polite bool) *peerConn {
			ours, theirs := net.Pipe()
			p := &peerConn{Conn: ours, began: time.Now(), polite: polite}
			lis.conns <- theirs
			go p.read()
			return p
		}
		greet := func(p *peerConn) *peerConn {
			_, _ = p.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
			p.write(frameSettings, 0, 0, nil)
			return p
		}
		ping := func(p *peerConn, every time.Duration) {
			for range 7 {
				time.Sleep(every)
				p.write(framePing, 0, 0, make([]byte, 8))
			}
		}
		silent, half := connect(false), connect(false)
		_, _ = half.Write([]byte("PRI * HTTP"))
		idle, deaf, patient, eager, busy := greet(connect(true)), greet(connect(false)), greet(connect(true)), greet(connect(true)), greet(connect(true))
		go ping(patient, 10*time.Second)
		go ping(eager, 9*time.Second)
		var headers []byte
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", pb.KeyBroker_Watch_FullMethodName}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			headers = append(append(append(headers, 0, byte(len(h[0]))), h[0]...), byte(len(h[1])))
			headers = append(headers, h[1]...)
		}
		busy.write(frameHeaders, 4, 1, headers) // END_HEADERS: a stream that lasts
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		s.Stop()

		settings := map[uint16]uint32{}
		for f := idle.first(frameSettings).payload; len(f) >= 6; f = f[6:] {
			settings[binary.BigEndian.Uint16(f)] = binary.BigEndian.Uint32(f[2:])
		}
		if settings[3] != 128 || settings[6] != 16<<10 {
			t.Errorf("settings %v, want 128 streams and 16 KiB of headers", settings)
		}
		for name, c := range map[string]struct {
			p        *peerConn
			from, to time.Duration
		}{
			"says nothing":                      {silent, 10 * time.Second, 10 * time.Second},
			"does not end its greeting":         {half, 10 * time.Second, 10 * time.Second},
			"asks for nothing":                  {idle, 2 * time.Minute, 2 * time.Minute},
			"does not answer":                   {deaf, time.Minute + 20*time.Second, time.Minute + 20*time.Second},
			"asks every 10 s whether we live":   {patient, 2 * time.Minute, 2 * time.Minute},
			"asks every 9 s":                    {eager, time.Second, time.Minute},
			"has a stream that has not arrived": {busy, 9 * time.Minute, 11 * time.Minute},
		} {
			if end := c.p.end(); end < c.from || end > c.to {
				t.Errorf("one that %s ends after %s, want %s to %s", name, end, c.from, c.to)
			}
		}
		if f := eager.first(frameGoAway); f == nil || !bytes.Contains(f.payload, []byte("too_many_pings")) {
			t.Errorf("told %+v", f)
		}
		if f := deaf.first(framePing); f == nil || f.at != time.Minute {
			t.Errorf("asked whether it lives: %+v", f)
		}
		for _, p := range []*peerConn{silent, half, idle, deaf, patient, eager, busy} {
			p.Close()
		}
	})
}
