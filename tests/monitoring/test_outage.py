from helpers.monitoring.outage import Outage


def test_trouble_is_logged_once_while_it_lasts_and_counted(caplog):
    outage = Outage("the disk is full")
    for broken in (True, True, True, False, True):
        with outage:
            if broken:
                raise OSError("no space")
        assert outage.lasting is broken
    assert caplog.messages == ["the disk is full"] * 2
    assert "OSError: no space" in caplog.text
    assert outage.count == 4


def test_an_interrupt_goes_through():
    try:
        with (outage := Outage("x")):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert outage.count == 0
    else:
        raise AssertionError("it was swallowed")
