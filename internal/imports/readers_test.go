package imports

import (
	"bytes"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestOneReader: documents from outside are read by the packages that refuse a second reading (docs/adr/0026-one-reading.md).
// A lenient reader, or a folder of them, stands here with the reason why it may.
func TestOneReader(t *testing.T) {
	for call, allowed := range map[string]map[string]string{
		"AppendCertsFromPEM(": {},
		"pem.Decode(": {
			"broker/tee/nitro/nitro.go":   "an embedded root whose digest is pinned",
			"broker/tee/nvidia/nvidia.go": "embedded roots whose digests are pinned",
			"broker/tee/teesim/root.go":   "a root that proves nothing",
		},
		"json.NewDecoder(": {
			"broker/strictjson/strictjson.go": "after its own checks",
			"broker/agent/luks/document.go":   "the characters of a header, before strictjson reads it",
			"cmd/claviger/evidence.go":        "claims that this process has just encoded",
			"internal/mutate/instrument.go":   "what go list prints",
			"broker/state/":                   "what brokers wrote",
		},
		"json.Unmarshal(": {
			"broker/strictjson/strictjson.go":  "after its own checks",
			"broker/agent/deliver/template.go": "one value out of an object that strictjson read",
			"cmd/claviger-agent/command.go":    "one value out of the file that strictjson read",
			"broker/vault/feed.go":             "hints for when to look at Vault, from a log",
			"broker/state/":                    "what brokers wrote",
			"broker/feed/feed.go":              "what brokers wrote",
			"broker/local/local.go":            "what this broker sealed",
			"broker/tee/teesim/device.go":      "a device that proves nothing",
			"broker/audit/prune.go":            "records of this broker's own log",
			"internal/server/sessions.go":      "records of this broker's own log",
		},
	} {
		out, err := exec.Command("git", "-C", "../..", "grep", "-lE", `(^|[^A-Za-z])`+regexp.QuoteMeta(call), "--", "*.go").Output()
		if err != nil && len(out) > 0 {
			t.Skipf("git grep: %v", err)
		}
		for line := range bytes.Lines(out) {
			file := string(bytes.TrimSpace(line))
			_, ok := allowed[file]
			if _, folder := allowed[path.Dir(file)+"/"]; ok || folder || strings.HasSuffix(file, "_test.go") || slices.ContainsFunc([]string{"test/", "internal/testservers/", "deploy/", "internal/e2e/", "internal/bench"}, func(s string) bool { return strings.Contains(file, s) }) {
				continue
			}
			t.Errorf("%s calls %s; use broker/strictjson or broker/pemfile", file, call)
		}
	}
}
