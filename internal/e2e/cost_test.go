package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/claviger/claviger/internal/testservers"
)

// TestAgentCost prints what the agent costs at boot, natively, beside a software
// TPM: its own CPU time and memory. It asserts nothing about time.
func TestAgentCost(t *testing.T) {
	need(t, "boot")
	w := newWorld(t)
	state := w.path("m", "tpm")
	if err := w.maker.Make(state, "m"); err != nil {
		t.Fatal(err)
	}
	socket := w.maker.StartTPM(t, state, "m")
	boot := testservers.NewBoot()
	boot.Extend(t, socket)
	args := []string{"reference", "set", "made-up", "--policy", "*", "--type", "tpm"}
	for claim, v := range boot.Values() {
		args = append(args, "--value", claim+"="+v)
	}
	w.command(t, "claviger", args...)
	var tpm struct {
		ChipID string `json:"chip_id"`
	}
	if err := json.Unmarshal([]byte(w.command(t, "claviger-agent", "tpm", "--tpm", socket, "--output", "json")), &tpm); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"broker": "127.0.0.1:" + w.port, "ca": w.ca, "identity": w.identity, "evidence": "tpm",
		"tpm": map[string]any{"device": socket, "event_log": boot.Log(t)},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := w.path("agent.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(w.bin("claviger-agent"))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		start := time.Now()
		c := exec.CommandContext(t.Context(), w.bin("claviger-agent"), "get", "disks/"+tpm.ChipID, "--config", file, "--out", filepath.Join(w.dir, "key"))
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		resident := watchMemory(c.Process.Pid)
		if err := c.Wait(); err != nil {
			t.Fatalf("get: %v\n%s", err, out.String())
		}
		p := c.ProcessState
		t.Logf("claviger-agent (%.1f MiB on disk): %s of CPU, %s resident at most, %s in all",
			float64(info.Size())/(1<<20), (p.UserTime() + p.SystemTime()).Round(time.Millisecond), <-resident, time.Since(start).Round(time.Millisecond))
	}
}

var highWater = regexp.MustCompile(`VmHWM:\s+(.*)\n`)

// watchMemory reads the kernel's high-water mark until the process is gone. The
// one that wait4 gives counts this test's own memory, from before the exec.
func watchMemory(pid int) <-chan string {
	out := make(chan string, 1)
	go func() {
		last := "unknown"
		for {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			m := highWater.FindSubmatch(b)
			if err != nil || m == nil { // gone, or a zombie
				out <- last
				return
			}
			last = string(m[1])
			time.Sleep(time.Millisecond)
		}
	}()
	return out
}
