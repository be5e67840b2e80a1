package policy

import (
	"encoding/binary"
	"io/fs"
	"syscall"
)

// identity is the file's inode and the time of its last change of any kind, which nobody can set.
func identity(fi fs.FileInfo) []byte {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	b := binary.BigEndian.AppendUint64(nil, st.Ino)
	b = binary.BigEndian.AppendUint64(b, uint64(st.Ctim.Sec))
	return binary.BigEndian.AppendUint64(b, uint64(st.Ctim.Nsec))
}
