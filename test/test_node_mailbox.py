import threading

from conftest import PATIENCE

from cotracker_ros.ros.mailbox import Mailbox


def test_newer_items_replace_and_fast_keys_starve_nobody():
    mailbox = Mailbox()
    assert not mailbox.put('fast', 1)
    assert not mailbox.put('slow', 1)
    assert mailbox.put('fast', 2)
    assert mailbox.take() == ('fast', 2)
    for number in (3, 4, 5):
        mailbox.put('fast', number)
    assert mailbox.take() == ('slow', 1)
    assert mailbox.take() == ('fast', 5)


def test_take_waits_for_an_item_or_the_end():
    mailbox, taken = Mailbox(), []

    def work():
        while (item := mailbox.take()) is not None:
            taken.append(item)
            done.set()

    done = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    mailbox.put('camera', 'image')
    assert done.wait(PATIENCE)
    mailbox.close()
    worker.join(PATIENCE)
    assert not worker.is_alive() and taken == [('camera', 'image')]
    mailbox.put('camera', 'too late')
    assert mailbox.take() is None
