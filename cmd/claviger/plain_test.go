package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/audit"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// hostile obeys no terminal's user: it clears the screen, moves the cursor, and
// writes a line that looks like one of ours.
const hostile = "evil\x1b[2J\x1b[H\x1b]0;owned\x07\u009b31m\x7f\u202e\u200b\n#7 2026-11-30T00:00:00Z RELEASED sev-snp\r"

// plain fails if anything in a command's output does more than print, or if
// what hostile has after its newline stands at the beginning of a line.
func (r result) plain(t *testing.T, what string) {
	t.Helper()
	for _, out := range []string{r.stdout, r.stderr} {
		if !utf8.ValidString(out) {
			t.Errorf("%s: not UTF-8: %q", what, out)
		}
		for _, c := range out {
			if c != '\n' && c != '\t' && !unicode.IsPrint(c) {
				t.Errorf("%s: prints %U: %q", what, c, out)
				break
			}
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "#7 2026") {
				t.Errorf("%s: prints a line of somebody else's: %q", what, out)
			}
		}
	}
}

// fill puts s into each string of a message, and two items into each list.
func fill(m protoreflect.Message, s string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		value := func(into protoreflect.Message) protoreflect.Value {
			switch f.Kind() {
			case protoreflect.StringKind:
				return protoreflect.ValueOfString(s)
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes([]byte(s))
			case protoreflect.MessageKind:
				fill(into, s, depth+1)
				return protoreflect.ValueOfMessage(into)
			}
			return f.Default()
		}
		switch {
		case depth > 4 || f.IsMap() || f.ContainingOneof() != nil:
		case f.IsList():
			list := m.Mutable(f).List()
			for range 2 {
				if f.Kind() == protoreflect.MessageKind {
					list.Append(value(list.NewElement().Message()))
				} else {
					list.Append(value(nil))
				}
			}
		case f.Kind() == protoreflect.MessageKind && f.Message().FullName() == "google.protobuf.Timestamp":
		case f.Kind() == protoreflect.MessageKind:
			m.Set(f, value(m.NewField(f).Message()))
		default:
			if v := value(nil); v.IsValid() {
				m.Set(f, v)
			}
		}
	}
}

// hostileBroker answers every question of an operator with hostile text, or, if
// fails is set, with an error in the same words. It returns the environment for commands.
func hostileBroker(t *testing.T, fails bool) []string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert := write(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	private := write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	answer := func(_ any, ss grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(ss)
		desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")))
		if err != nil {
			return err
		}
		m := desc.(protoreflect.MethodDescriptor)
		message := func(name protoreflect.FullName) proto.Message {
			typ, err := protoregistry.GlobalTypes.FindMessageByName(name)
			if err != nil {
				t.Error(err)
				return nil
			}
			return typ.New().Interface()
		}
		if err := ss.RecvMsg(message(m.Input().FullName())); err != nil {
			return err
		}
		if fails {
			return status.Error(codes.FailedPrecondition, hostile)
		}
		out := message(m.Output().FullName())
		if _, ok := out.(*pb.ListDecisionsResponse); ok { // its entries are JSON
			out = &pb.ListDecisionsResponse{Decisions: []*pb.Decision{{LogIndex: 1, Entry: string(hostileRecord(t))}}}
		} else {
			fill(out.ProtoReflect(), hostile, 0)
			clearTokens(out.ProtoReflect())
		}
		return ss.SendMsg(out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(answer), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	address := strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1)
	return []string{"CLAVIGER_ADMIN=" + address, "CLAVIGER_ADMIN_CA=" + cert, "CLAVIGER_ADMIN_CERT=" + cert, "CLAVIGER_ADMIN_KEY=" + private}
}

// clearTokens makes a page the last one.
func clearTokens(m protoreflect.Message) {
	if f := m.Descriptor().Fields().ByName("next_page_token"); f != nil {
		m.Clear(f)
	}
}

func hostileRecord(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	hostileLog(t, dir)
	key, err := logKey(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.NewReader(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range r.Entries(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		return e.Data
	}
	t.Fatal("no entry")
	return nil
}

// hostileLog makes a log with one record, all of it hostile.
func hostileLog(t *testing.T, dir string) {
	t.Helper()
	signer, verifier, err := audit.GenerateKey(rand.Reader, "test")
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(t.Context(), dir, signer, verifier)
	if err != nil {
		t.Fatal(err)
	}
	_, err = log.Append(t.Context(), broker.Record{
		Version: 1, ID: hostile, Time: time.Now(), Outcome: broker.Denied, EvidenceType: hostile, HardwareModel: hostile, ChipID: hostile, Error: hostile,
		Measurements: []string{hostile + "=" + hostile}, Advisories: []string{hostile}, TCBStatus: hostile, HostData: hostile,
		Resources: []broker.RecordResource{{Path: hostile, Policy: hostile, Version: hostile, Reasons: []broker.DecisionReason{{Rule: hostile, Message: hostile, Claim: hostile, Got: hostile, Nearest: hostile}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "log.vkey"), []byte(verifier+"\n"))
}

// TestHostileText: whatever a broker, a log or a file says, a terminal only shows it.
func TestHostileText(t *testing.T) {
	ask := [][]string{
		{"status"}, {"policy", "status"}, {"reference", "list"}, {"catalog", "list"}, {"secret", "list"}, {"secret", "delete", "x"},
		{"revoke", "chip", strings.Repeat("ab", 64), "--reason", "x"}, {"revoke", "chip", strings.Repeat("ab", 64), "--dry-run"}, {"unrevoke", "chip", "ab"}, {"revocations"},
		{"holders", "db/orders"}, {"sessions"}, {"notify", "db/orders"}, {"token", "rotate"}, {"audit", "tail"},
	}
	for _, fails := range []bool{false, true} {
		env := hostileBroker(t, fails)
		for _, args := range ask {
			for _, output := range []string{"table", "json"} {
				r := command(t, env, append(args, "--output", output)...)
				r.plain(t, strings.Join(args, " ")+" as "+output)
				if r.code == 2 {
					t.Errorf("%v: %s", args, r.stderr)
				}
				if fails && !strings.Contains(r.stderr, "evil") {
					t.Errorf("%v: the error is not printed: %q", args, r.stderr)
				}
			}
		}
	}
	dir := t.TempDir()
	hostileLog(t, dir)
	for _, output := range []string{"table", "json"} {
		command(t, nil, "audit", "tail", "--dir", dir, "--output", output).want(t, 0, "evil").plain(t, "audit tail --dir as "+output)
	}
	command(t, nil, "audit", "verify", "--dir", dir+hostile).plain(t, "a folder of that name")
	command(t, nil, hostile).want(t, 2).plain(t, "a command of that name")
	command(t, nil, "serve", "--config", write(t, filepath.Join(dir, "claviger.yaml"), []byte("listen: \"evil\\e[2J\"\n"))).want(t, 1).plain(t, "a configuration")
	policies := write(t, filepath.Join(t.TempDir(), "evil\x1b[2J.rego"), []byte("package evil\nallow := \x1b\u202e"))
	command(t, nil, "policy", "check", filepath.Dir(policies)).plain(t, "policy check")
}
