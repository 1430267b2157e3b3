package vm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

// plug changes the hardware of the machine as a test in it asks:
//
//	nvme SERIAL MEBIBYTES    an NVMe disk with that serial number appears
//	unplug SERIAL            and is taken away
func (m *Machine) plug(words []string) error {
	switch {
	case len(words) == 3 && words[0] == "nvme":
		size, err := strconv.ParseInt(words[2], 10, 32)
		if err != nil {
			return err
		}
		return m.nvme(words[1], size<<20)
	case len(words) == 2 && words[0] == "unplug":
		return m.Command("device_del", map[string]any{"id": words[1]})
	}
	return fmt.Errorf("%q is nothing that can be plugged", words)
}

func (m *Machine) nvme(serial string, size int64) error {
	disk := m.file(serial + ".raw")
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if m.ports >= rootPorts {
		return errors.New("no place is left to plug something in")
	}
	err = m.Command("blockdev-add", map[string]any{"driver": "raw", "node-name": "node-" + serial, "file": map[string]any{"driver": "file", "filename": disk}})
	if err != nil {
		return err
	}
	bus := fmt.Sprintf("rp%d", m.ports)
	m.ports++
	return m.Command("device_add", map[string]any{"driver": "nvme", "id": serial, "serial": serial, "drive": "node-" + serial, "bus": bus})
}
